"""Functions on offline data: rollouts and demonstrations as macro transitions, and what to warn of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey

from dsrl_torchrl import seeds
from dsrl_torchrl.cli.config import TaskOptions
from dsrl_torchrl.cli.targets import find_target, parameters
from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.collect.rollouts import collect_rollouts
from dsrl_torchrl.data.demonstration_transitions import demonstration_transitions, step_penalty
from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.inversion.cache import invert_transitions
from dsrl_torchrl.inversion.search import NoiseOptimisation, NoiseRetrieval
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, SUCCESS_KEY
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.policies.identity import IdentityPolicy

#: Share of a reward at the end of a successful episode that must be left at its start.
SEEN = 0.05
INVERSIONS = {"optimisation": NoiseOptimisation, "retrieval": NoiseRetrieval}


def base_rollouts(
    env: LatentActionEnv, keys: Sequence[NestedKey], env_steps: int, *, seed: int, progress: bool
) -> tuple[TensorDictBase, EpisodeTracker]:
    """Rollouts of the base policy under its prior, ``[n]``, and their episodes."""
    return collect_rollouts(
        env,
        PriorNoise(env.latent_dim, device=env.decoder.device),
        env_steps,
        seed=seeds.ROLLOUT_STREAM + seed,
        observation_keys=keys,
        progress=progress,
    )


def short_sighted(episodes: EpisodeTracker, gamma: float) -> str | None:
    """A warning where successes come so late that their reward is nearly nothing at the start, by the discount.

    The critics then learn the noise of what comes first, not who succeeds: on LiftPegUpright, whose successes take
    166 env steps, 0.98 leaves 3.5 % (docs/what-was-tried.md, "The discount"). Where episodes go on after success, their
    whole length counts: the warning comes too early then.
    """
    lengths = episodes.successful_lengths
    if not lengths:
        return None
    steps = sum(lengths) / len(lengths)
    left, farther = gamma**steps, 1 - 1 / steps
    if left >= SEEN or farther <= gamma:
        return None
    return (
        f"warning: successful episodes take {steps:.0f} env steps, after which algorithm.gamma={gamma:g} leaves "
        f"{left:.1%} of a reward: critics hardly tell success from failure; algorithm.gamma={farther:.4f} leaves "
        f"{farther**steps:.0%}"
    )


def failing_pays(task: TaskOptions, rollouts: TensorDictBase) -> str | None:
    """A warning where the task ends by failure although every step that it goes on costs 1, from its rollouts ``[n]``.

    To fail at once is then the best return, and what is learned.
    """
    if not _has_our_reward(task) or _argument(task, "reward", "step_penalty") != "step_penalty":
        return None
    outcome = rollouts["next"]
    if outcome.get(SUCCESS_KEY, None) is None:
        return None
    failed = int((outcome["terminated"] & ~outcome[SUCCESS_KEY]).sum())
    if not failed:
        return None
    return (
        f"warning: {failed} of {int(outcome['done'].sum())} episodes ended early without success: with a reward of -1 "
        "a step, failing early pays; set task.env.terminate_on_success=false (to the time limit) or another "
        "task.env.reward"
    )


def check_demonstrated_reward(task: TaskOptions) -> None:
    """Raises :class:`UserError` for a reward that demonstrations do not carry."""
    if not _has_our_reward(task):
        raise UserError(
            "task.env does not say that its reward is -1 a step (an argument reward or success_bonus), which is what "
            "demonstrations get: set stage1.use_demonstrations=false"
        )
    reward = _argument(task, "reward", "step_penalty")
    if reward != "step_penalty":
        raise UserError(
            f"demonstrations carry no {reward} reward: set task.env.reward=step_penalty or "
            "stage1.use_demonstrations=false"
        )
    bonus = _argument(task, "success_bonus", 1.0)
    if bonus != 1 and not _argument(task, "terminate_on_success", True):
        raise UserError(
            "demonstrations end at their first success, so with task.env.terminate_on_success=false they agree with "
            f"the env for task.env.success_bonus=1 alone, not for {bonus:g}: set it, or stage1.use_demonstrations=false"
        )


def demonstrated_transitions(
    task: TaskOptions, episodes: Sequence[Episode], keys: Sequence[NestedKey], gamma: float
) -> TensorDictBase:
    """The demonstrations as macro transitions ``[n]`` with the task's reward, without noise.

    Raises:
        UserError: a reward that demonstrations do not carry, or entries that they lack.
    """
    check_demonstrated_reward(task)
    entries = episodes[0].observations
    lacking = [entry_name(key) for key in keys if entries.get(key, None) is None]
    if lacking:
        raise UserError(
            f"the demonstrations lack the entry {lacking[0]}: say where it is, "
            f"task.demonstrations.entries.{lacking[0]}=<h5 data set>, or set stage1.use_demonstrations=false"
        )
    return demonstration_transitions(
        episodes,
        obs_horizon=task.obs_horizon,
        act_horizon=task.act_horizon,
        gamma=gamma,
        reward=partial(step_penalty, success_bonus=_argument(task, "success_bonus", 1.0)),
    )


def with_noise(
    demonstrations: TensorDictBase,
    decoder: NoiseDecoder,
    inversion: str,
    folder: Path,
    *,
    progress: bool,
    say: Callable[[str], None] = warnings.warn,
) -> tuple[TensorDictBase, str]:
    """The demonstrations with a noise that decodes to what they did, and how well it does in a line."""
    labelled, report = invert_transitions(
        demonstrations, decoder, INVERSIONS[inversion](), folder, progress=progress, say=say
    )
    return labelled, f"inversion: {report}"


def with_chunks(transitions: TensorDictBase, policy: IdentityPolicy) -> TensorDictBase:
    """Macro transitions ``[n]`` of any policy for learners of raw chunks: ``action`` is the chunk itself."""
    chunk = transitions["next", CHUNK_KEY]
    return transitions.copy().set("action", policy.encode_chunk(chunk.to(policy.device)).to(chunk.device))


def joined(parts: Sequence[TensorDictBase], *, noise: bool) -> TensorDictBase:
    """One data set ``[n]`` of all: with the noise of its transitions, or without, where that is not read."""
    if not noise:
        parts = [part.exclude("action") for part in parts]
    return torch.cat([part.select(*parts[0].keys(True, True)) for part in parts])


def _has_our_reward(task: TaskOptions) -> bool:
    return bool({"reward", "success_bonus"} & parameters(find_target(task.env, "task.env")).keys())


def _argument(task: TaskOptions, name: str, otherwise: Any) -> Any:
    """The env's argument: as configured, or its own default."""
    parameter = parameters(find_target(task.env, "task.env")).get(name)
    default = otherwise if parameter is None or parameter.default is parameter.empty else parameter.default
    return task.env.get(name, default)
