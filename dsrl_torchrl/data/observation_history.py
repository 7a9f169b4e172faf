"""The history that a base policy reads, cut out of a recorded episode."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor


def stack_history(entries: TensorDictBase, steps: Tensor, obs_horizon: int) -> TensorDictBase:
    """The last ``obs_horizon`` observations of an episode as seen at ``steps``, per entry.

    Like TorchRL's ``CatFrames(N=obs_horizon, dim=-ndim, padding="same")``, which makes it in an env: primitive steps,
    concatenated along an entry's first feature axis, oldest first, the first observation repeated at the start::

        obs_horizon = 3     step 0: o0 o0 o0     step 1: o0 o0 o1     step 5: o3 o4 o5

    Args:
        entries: one episode's observations ``[T + 1]``: vectors ``[d]``, images ``[C, H, W]``; dtypes are kept.
        steps: int64 ``[*S]`` in ``0..T``.
        obs_horizon: observations in the history.

    Returns:
        ``[*S]``, with vectors ``[obs_horizon * d]`` and images ``[obs_horizon * C, H, W]``.
    """
    seen = (steps.unsqueeze(-1) + torch.arange(1 - obs_horizon, 1)).clamp(min=0)  # (*S, obs_horizon)
    axis = steps.ndim
    return entries[seen].apply(lambda entry: entry.flatten(axis, axis + 1), batch_size=steps.shape)
