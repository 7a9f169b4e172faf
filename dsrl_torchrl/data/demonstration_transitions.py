"""Offline macro transitions: demonstrations in the schema of online data (Eq. 3 to 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dsrl_torchrl.data.episode import Episode, stack_history
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, STEPS_KEY, SUCCESS_KEY


def step_penalty(success: Tensor, success_bonus: float = 1.0) -> Tensor:
    """``-1`` a step and ``success_bonus`` more on success: the reward of our envs, from success flags ``[*B]``."""
    return success_bonus * success.float() - 1.0


def demonstration_transitions(
    episodes: Sequence[Episode],
    *,
    obs_horizon: int,
    act_horizon: int,
    gamma: float,
    reward: Callable[[Tensor], Tensor] = step_penalty,
) -> TensorDictBase:
    """Every step of every demonstration as the start of one macro step.

    For ``act_horizon=3`` and an episode that first succeeds on step 4 (``o0 .. o5``, ``a0 .. a4``)::

        t = 0   o0   a0 a1 a2   R = r0 + γ r1 + γ² r2   k = 3   next o3
        t = 1   o1   a1 a2 a3   R = r1 + γ r2 + γ² r3   k = 3   next o4
        t = 2   o2   a2 a3 a4   R = r2 + γ r3 + γ² r4   k = 3   next o5   terminated
        t = 3   o3   a3 a4 a4   R = r3 + γ r4           k = 2   next o5   terminated
        t = 4   o4   a4 a4 a4   R = r4                  k = 1   next o5   terminated

    Macro steps may start anywhere, not only at multiples of ``act_horizon``: ``Q^A`` learns from any of them. An
    episode is cut at its first success, where a training episode ends. Beyond it the chunk repeats the last action, as
    in behaviour cloning. An episode whose flags never tell success, but which was read as successful, succeeds on its
    last step.

    Args:
        episodes: successful demonstrations.
        obs_horizon: observations in the history, see :func:`stack_history`.
        act_horizon: executed actions in a chunk.
        gamma: discount per primitive step.
        reward: success flags ``[T]`` to primitive rewards ``[T]``.

    Returns:
        Batch ``[n]`` in the schema of :func:`~dsrl_torchrl.data.macro_transitions.macro_transition_keys`, without
        ``action``: the noise of a demonstration is unknown.
    """
    return torch.cat([_episode_transitions(e, obs_horizon, act_horizon, gamma, reward) for e in episodes])


def _episode_transitions(
    episode: Episode, obs_horizon: int, act_horizon: int, gamma: float, reward: Callable[[Tensor], Tensor]
) -> TensorDictBase:
    success = episode.success.clone()
    if not success.any():
        success[-1] = True
    length = int(success.int().argmax()) + 1
    success = success[:length]
    r = reward(success)  # (T,)
    t = torch.arange(length)
    k = (length - t).clamp(max=act_horizon)  # (T,)
    ahead = t.unsqueeze(-1) + torch.arange(act_horizon)  # (T, H_a)
    inside = ahead < length
    ahead = ahead.clamp(max=length - 1)
    discounts = gamma ** torch.arange(act_horizon)
    terminated = (t + k == length).unsqueeze(-1)
    outcome = TensorDict(
        {
            "reward": (r[ahead] * inside * discounts).sum(-1, keepdim=True),
            STEPS_KEY: k.unsqueeze(-1),
            CHUNK_KEY: episode.action[ahead],
            "terminated": terminated,
            "truncated": torch.zeros_like(terminated),
            "done": terminated.clone(),
            SUCCESS_KEY: success[t + k - 1].unsqueeze(-1),
        },
        [length],
    )
    following = stack_history(episode.observations, t + k, obs_horizon).update(outcome)
    return stack_history(episode.observations, t, obs_horizon).set("next", following)
