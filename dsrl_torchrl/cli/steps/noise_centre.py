"""``latent.centre_env_steps``: a constant noise that works, around which this base policy is steered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from tqdm import tqdm

from dsrl_torchrl import seeds
from dsrl_torchrl.agents.golden_noise import GoldenNoise
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.collect.macro_steps import macro_steps_of
from dsrl_torchrl.data.macro_transitions import check_finite, to_macro_transitions
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY
from dsrl_torchrl.policies.centred import SHARE, coordinates, place

FILE, ROLLOUTS_FILE = "centre.safetensors", "rollouts.safetensors"
#: 40 episodes, or what there is but for the trial: docs/what-was-tried.md, "Around a noise that works", by resampling.
CANDIDATES, FIRST_EPISODES = 16, 1
#: Of the env steps, at least for the trial.
TRIAL = 1 / 3


@dataclass(frozen=True)
class CentreChoice:
    """The noise that won the search, and whether it won the trial.

    Attributes:
        centre: ``[noise_horizon, noise_dim]``.
        kept: whether the base policy around it had the better returns.
        mean_return: around it, discounted, of the trial's episodes.
        mean_return_of_base: the same of the base policy as it is.
        search_episodes: finished by all candidates.
        trial_episodes: finished by both.
        env_steps: taken by search and trial.
    """

    centre: Tensor
    kept: bool
    mean_return: float
    mean_return_of_base: float
    search_episodes: int
    trial_episodes: int
    env_steps: int

    def line(self) -> str:
        """For the user."""
        return (
            f"noise centre: the best of {CANDIDATES} constant noises, by {self.search_episodes} episodes; around it a "
            f"mean return of {self.mean_return:.1f}, of the base policy {self.mean_return_of_base:.1f}, by "
            f"{self.trial_episodes}: {'steered around it' if self.kept else 'steered as it is'}; "
            f"{self.env_steps} env steps"
        )


def search_centre(
    env: LatentActionEnv, config: RunConfig, keys: Sequence[NestedKey]
) -> tuple[CentreChoice, TensorDictBase, EpisodeTracker]:
    """A golden-noise search (Eq. 31), then a trial: the base policy around the winner against the base policy.

    Both in ``latent.centre_env_steps`` env steps. Zero noise is one of the candidates.

    Args:
        env: of the base policy itself.
        config: of the run.
        keys: the observations to keep.

    Returns:
        The choice, all macro transitions ``[n]`` with the noise of the policy that is steered now, and their episodes.

    Raises:
        UserError: so few env steps that no episode of the trial ends.
        NonFiniteError: NaN or infinity in an episode.
    """
    budget, episodes = config.latent.centre_env_steps, EpisodeTracker(window=None)
    torch.manual_seed(seeds.SEARCH_STREAM + config.seed)  # whatever networks were made before: it learns nothing
    candidates = torch.randn(CANDIDATES, env.latent_dim)
    candidates[0] = 0.0
    bar = tqdm(total=budget, unit="step", desc="noise centre", mininterval=1.0, disable=not config.progress)
    play = partial(_play, env, keys=keys, episodes=episodes, bar=bar)
    with bar:
        search = _arms(env, config, candidates, FIRST_EPISODES)
        searched = play(search, search.policy, int((1 - TRIAL) * budget), stream=seeds.SEARCH_STREAM + config.seed)
        leader, spent = search.candidates[search.leader].clone(), _env_steps(searched)
        trial = _arms(env, config, torch.stack([torch.zeros_like(leader), leader]), budget)  # nobody is dropped
        tried = play(trial, TrialPolicy(trial), budget - spent, stream=seeds.TRIAL_STREAM + config.seed)
    if not bool((trial.episodes > 0).all()):
        raise UserError(
            f"latent.centre_env_steps={budget} ended before its episodes did: make it some {4 * CANDIDATES} episodes"
        )
    of_base, around = (trial.returns / trial.episodes).tolist()
    kept = around > of_base
    transitions: TensorDictBase = torch.cat([searched, tried])
    if kept:
        transitions.set("action", coordinates(transitions["action"], leader.cpu(), SHARE))
    choice = CentreChoice(
        centre=env.decoder.layout.to_chunk_noise(leader).cpu(),
        kept=kept,
        mean_return=around,
        mean_return_of_base=of_base,
        search_episodes=int(search.episodes.sum()),
        trial_episodes=int(trial.episodes.sum()),
        env_steps=_env_steps(transitions),
    )
    return choice, transitions, episodes


class TrialPolicy(TensorDictModuleBase):
    """The base policy's prior in every other episode, in the others the prior around the second of the two."""

    in_keys: ClassVar[list] = [STEPS_KEY]
    out_keys: ClassVar = ["action"]

    def __init__(self, trial: GoldenNoise) -> None:
        super().__init__()
        self.trial = trial

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        started = (tensordict.get(STEPS_KEY) == 0).flatten().tolist()
        second = torch.tensor(self.trial.begin(started), device=self.trial.candidates.device).unsqueeze(-1) == 1
        prior = torch.randn(len(second), self.trial.candidates.shape[-1]).to(self.trial.candidates)
        noise = torch.where(second, place(prior, self.trial.candidates[1], SHARE), prior)
        return tensordict.set("action", noise.reshape(*tensordict.batch_size, -1))


def _arms(env: LatentActionEnv, config: RunConfig, candidates: Tensor, first_episodes: int) -> GoldenNoise:
    """What gives ``candidates`` ``[n, latent_dim]`` their episodes."""
    options = GoldenNoise.Config(
        gamma=config.algorithm.gamma, candidates=len(candidates), first_episodes=first_episodes
    )
    with torch.random.fork_rng():  # it draws candidates of its own
        agent = GoldenNoise(env, options, config.networks)
    agent.candidates.copy_(candidates)
    return agent


def _play(
    env: LatentActionEnv,
    arms: GoldenNoise,
    policy: TensorDictModuleBase,
    env_steps: int,
    *,
    stream: int,
    keys: Sequence[NestedKey],
    episodes: EpisodeTracker,
    bar: tqdm,
) -> TensorDictBase:
    """Macro transitions ``[n]`` until one candidate is left or ``env_steps`` are over."""
    batches, taken = list[TensorDictBase](), 0
    episodes.restart()
    with macro_steps_of(env, policy, stream, lambda: None) as endless:
        for batch in endless:
            # The collector writes the next batch over this one.
            transitions = to_macro_transitions(batch, keys).clone().cpu()
            check_finite(transitions, bar.n)
            batches.append(transitions)
            episodes.update(batch)
            arms.store(transitions, online=True)
            taken += _env_steps(transitions)
            bar.update(min(_env_steps(transitions), bar.total - bar.n))
            if taken >= env_steps or int(arms.left.sum()) == 1:
                return torch.cat(batches)
    raise AssertionError("the collector is endless")


def _env_steps(transitions: TensorDictBase) -> int:
    return int(transitions["next", STEPS_KEY].sum())
