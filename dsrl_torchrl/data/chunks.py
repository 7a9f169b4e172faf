"""Demonstrations cut into action chunks, the data of behaviour cloning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase

from dsrl_torchrl.data.episode import Episode, stack_history
from dsrl_torchrl.errors import UserError


def cut_chunks(episodes: Sequence[Episode], obs_horizon: int, pred_horizon: int) -> TensorDictBase:
    """Cuts every step of every episode into one (observation history, action chunk) pair for behaviour cloning.

    For ``obs_horizon=2, pred_horizon=4`` and an episode of ``T=6`` steps (``o0 .. o6``, ``a0 .. a5``)::

        t = 0   observation  o0 o0      (the first observation is repeated)
                action          a0 a1 a2 a3         valid  1 1 1 1
        t = 1   observation  o0 o1
                action          a1 a2 a3 a4         valid  1 1 1 1
        ...
        t = 4   observation  o3 o4
                action          a4 a5 a5 a5         valid  1 1 0 0   (the last action is repeated, and masked)

    So action ``j`` of the chunk is the one for step ``t + j``, and index 0 is executed from the newest observation.

    Args:
        episodes: demonstrations with the same entries and sizes.
        obs_horizon: number of observations in the history, see :func:`stack_history`.
        pred_horizon: number of actions in a chunk.

    Returns:
        Batch ``[N]``, ``N`` the total number of steps: the observations' entries with their history,
        ``action`` ``[N, pred_horizon, action_dim]``, ``valid`` ``[N, pred_horizon]`` bool, False past the end.
    """
    if obs_horizon < 1 or pred_horizon < 1:
        raise UserError(f"obs_horizon and pred_horizon must be at least 1, got {obs_horizon} and {pred_horizon}")
    chunks = []
    for episode in episodes:
        t = torch.arange(len(episode))
        ahead = t.unsqueeze(-1) + torch.arange(pred_horizon)  # (T, pred_horizon)
        action = episode.action[ahead.clamp(max=len(episode) - 1)]
        actions = TensorDict({"action": action, "valid": ahead < len(episode)}, [len(episode)])
        chunks.append(stack_history(episode.observations, t, obs_horizon).update(actions))
    return torch.cat(chunks)
