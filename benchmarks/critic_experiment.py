"""The fixed policy of :mod:`benchmarks.critic_targets`: what it did, what became of it, and critics fitted to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from time import process_time
from typing import Any

import torch
import yaml
from tensordict import TensorDictBase
from torch import Tensor

from benchmarks.branched_data import Branches, collect_branches
from benchmarks.fitted_critics import FittedCritic, NextStateModel, lookahead, with_next_chunks, within_r2
from dsrl_torchrl import seeds
from dsrl_torchrl.agents import DSRLNA
from dsrl_torchrl.cli.compose import make_config
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.folder import CONFIG_FILE
from dsrl_torchrl.cli.latent_env import make_latent_env
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.data.macro_transitions import OUTCOME_KEYS
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, SUCCESS_KEY
from dsrl_torchrl.latent_env.saved_states import can_restore
from dsrl_torchrl.steerability.critic_ranking import rank_against

#: Episodes of the fixed policy: noises a state, and env steps in units of ``--env-steps``.
COLLECTED = {"tails": (1, 1), "branches": (4, 1), "more branches": (4, 3)}
#: Resets that each of them has room for, after the truth's.
STARTS = 1_000_000
#: Sub-envs side by side.
ENVS = 32


@dataclass(frozen=True)
class Sizes:
    """The command line's.

    Attributes:
        states, noises: S and K of the truth.
        updates: of a critic and of each member of a model.
        env_steps: of the policy's own episodes, see :data:`COLLECTED`.
    """

    states: int
    noises: int
    updates: int
    env_steps: int


@dataclass(frozen=True)
class Variant:
    """What a Q^A of the fixed policy is fitted to, and how.

    Attributes:
        what: in words.
        collected: of :data:`COLLECTED`, beside the run's offline data.
        sample: the next noise is a sample of the policy, not its mode.
        updates: in units of ``--updates``.
        networks: options that differ from the run's.
        weight_decay: AdamW's.
        regression: on the returns of ``branches``, centred within a state, beside TD.
        model: a model of the next state is fitted to the same data, and the critic's value there is a judge of its own.
    """

    what: str
    collected: tuple[str, ...] = ()
    sample: bool = False
    updates: int = 1
    networks: dict[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.0
    regression: bool = False
    model: bool = False


def run_config(word: str) -> RunConfig:
    """The configuration that ``run=<folder>`` was made with.

    Raises:
        UserError: another word, or no run there.
    """
    name, _, folder = word.partition("=")
    path = Path(folder)
    if name != "run" or not folder or not (path / CONFIG_FILE).exists():
        raise UserError(f"expected run=<folder> of a finished stage 1, with a {CONFIG_FILE}, got {word!r}")
    values = yaml.safe_load((path / CONFIG_FILE).read_text())
    return make_config(values | {"name": path.name, "output": str(path.parent), "progress": False})


class Experiment:
    """The fixed policy, what it did and what became of it.

    Raises:
        UserError: no finished stage 1, no Q^A, observations that are not one entry of states, or an env that cannot
            restore a state.
    """

    def __init__(self, run: Run, sizes: Sizes) -> None:
        self.run, self.sizes = run, sizes
        stage1 = run.folder.stage1
        if not stage1.exists:
            raise UserError(f"{stage1.folder} holds no finished stage 1: dsrl stage1 first")
        run.settle_magnitude()
        config, spec = run.config, run.config.task.env
        if "num_envs" in spec:
            config = config.replace(task=config.task.replace(env=spec | {"num_envs": ENVS}))
        self.gamma = config.offline_algorithm.gamma
        self.env = make_latent_env(config, run.steered(), gamma=self.gamma, workers=1, subspace=run.subspace())
        self.agent = run.agent(self.env, config.offline_algorithm)
        self.agent.load(stage1.folder)
        self.agent.eval()
        keys = self.env.decoder.base_policy.in_keys
        if not isinstance(self.agent, DSRLNA) or len(keys) != 1 or self.agent.encoder.trainable:
            raise UserError("critic_targets needs an algorithm with Q^A, and a single entry of states")
        if not can_restore(self.env) or self.gamma == 1:
            raise UserError("critic_targets needs a task's env with get_state() and set_state(), and gamma below 1")
        self.key = keys[0]

    @cached_property
    def truth(self) -> Branches:
        """What the critics are measured by."""
        states, noises = self.sizes.states, self.sizes.noises
        starts = seeds.DIAGNOSIS[:states]
        return self._collected(f"truth_{states}x{noises}", lambda: self._branches(starts, noises, 0))

    def _branches(self, starts: range, noises: int, env_steps: int) -> Branches:
        seed = self.run.config.seed
        return collect_branches(self.env, self.agent.kept_policy, starts, noises, seed, env_steps)

    def collected(self, name: str) -> Branches:
        """Episodes of the fixed policy, from resets of their own."""
        noises, times = COLLECTED[name]
        steps = times * self.sizes.env_steps
        first = (1 + list(COLLECTED).index(name)) * STARTS
        starts = seeds.DIAGNOSIS[first : first + STARTS]
        return self._collected(
            f"{name.replace(' ', '_')}_{steps}x{noises}", lambda: self._branches(starts, noises, steps)
        )

    def _collected(self, name: str, collect: Callable[[], Branches]) -> Branches:
        """From the run folder, where they are there of this actor."""
        content = str(self.run.folder.stage1.content)[:12]
        path = self.run.folder.path / "critic_targets" / f"{name}_{content}.safetensors"
        if not path.exists():
            begin = process_time()
            branches = collect()
            path.parent.mkdir(exist_ok=True)
            branches.save(path)
            self.run.say(f"{name}: {branches.env_steps} env steps in {process_time() - begin:.0f} CPU seconds, {path}")
        return Branches.load(path)

    @cached_property
    def first(self) -> TensorDictBase:
        """The truth's own noises, prepared, ``[S, K]``."""
        return with_next_chunks(self.agent, self.truth.first)

    @cached_property
    def offline(self) -> TensorDictBase:
        """The run's offline data, without noise."""
        outcome = [("next", key) for key in (self.key, *OUTCOME_KEYS) if key != SUCCESS_KEY]
        return self.run.offline_data().select(self.key, *outcome)

    def own(self) -> dict[str, Any]:
        """Stage 1's critics."""
        first = self.first
        flat = first.reshape(-1)
        with torch.no_grad():
            noise = self.agent.noise_values(flat.copy(), flat["action"]).mean(0).reshape(first.shape)
            q = self.agent.chunk_values(flat.copy(), flat["next", CHUNK_KEY]).mean(0).reshape(first.shape)
            following = flat["next"]
            value = self.agent.chunk_values(following.copy(), following["chunk"]).mean(0).reshape(first.shape)
        judges = {"q": q, "q_noise": noise, "next_state": lookahead(first, value, self.gamma)}
        return self._ranked(judges) | {"what": "stage 1's own", "env_steps": 0}

    def fitted(self, variant: Variant) -> dict[str, Any]:
        """A critic that is fitted now."""
        collected = [self.collected(name) for name in variant.collected]
        raw = torch.cat(
            [self.offline, *[each.transitions.select(*self.offline.keys(True, True)) for each in collected]]
        )
        begin = process_time()
        data = with_next_chunks(self.agent, raw, sample=variant.sample)
        decoding = process_time() - begin
        networks = self.run.config.networks.replace(**variant.networks)
        critic = FittedCritic(self.agent, self.env, networks, weight_decay=variant.weight_decay)
        branches = None
        if variant.regression:
            branches = with_next_chunks(self.agent, collected[0].first), collected[0].returns
        critic.fit(data, variant.updates * self.sizes.updates, branches)
        first = self.first
        judges = {"q": critic.values(first), "next_state": lookahead(first, critic.next_values(first), self.gamma)}
        model: dict[str, Any] = {}
        if variant.model:
            predictor = NextStateModel(data, self.key, updates=self.sizes.updates)
            predicted = with_next_chunks(self.agent, predictor(first))
            judges["predicted_next_state"] = critic.next_values(predicted)
            r2 = within_r2(predicted["next", self.key], first["next", self.key], predictor.unit)
            model = {"model": {"within_r2": r2, "seconds": round(predictor.seconds, 1)}}
        facts = {
            "what": variant.what,
            "env_steps": sum(each.env_steps for each in collected),
            "transitions": len(data),
            "updates": variant.updates * self.sizes.updates,
            "seconds": round(decoding + critic.seconds, 1),
        }
        return self._ranked(judges) | facts | model

    def _ranked(self, judges: dict[str, Tensor]) -> dict[str, Any]:
        return {name: asdict(rank_against(self.truth.returns, value)) for name, value in judges.items()}

    def measured(self) -> dict[str, Any]:
        """Whose noises, and how many of them: variants can be compared where this is the same."""
        return {
            "task": self.run.config.task.name,
            "seed": self.run.config.seed,
            "stage1": self.run.folder.stage1.content,
            "states": self.sizes.states,
            "noises": self.sizes.noises,
        }

    def about(self) -> dict[str, Any]:
        """What the truth is."""
        returns = self.truth.returns
        return self.measured() | {
            "return_std": float(returns.std(1).mean()),
            "best_gain": float((returns.max(1)[0] - returns.mean(1)).mean()),
            "success": float(self.truth.success.double().mean()),
        }
