"""A demonstration in memory, what every reader returns, and the history that a base policy reads of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dsrl_torchrl.errors import UserError


@dataclass(frozen=True)
class Episode:
    """One demonstration of ``T`` steps.

    ``observations[t]`` is what is seen before ``action[t]``; the flags tell how step ``t`` ended.

    Raises:
        UserError: no steps, or lengths that do not belong together.
    """

    observations: TensorDictBase  # [T + 1], its entries one step's: vectors [d], uint8 images [C, H, W]
    action: Tensor  # (T, action_dim) float32
    success: Tensor  # (T,) bool
    terminated: Tensor  # (T,) bool
    truncated: Tensor  # (T,) bool

    def __post_init__(self) -> None:
        flags = {"success": self.success, "terminated": self.terminated, "truncated": self.truncated}
        lengths = {"action": len(self.action), "observations": len(self.observations) - 1}
        lengths |= {name: len(flag) for name, flag in flags.items()}
        if self.action.ndim != 2 or set(lengths.values()) != {len(self.action)} or not len(self.action):
            raise UserError(
                f"an episode of T >= 1 steps has actions [T, action_dim], T + 1 observations and T of each flag; got "
                f"actions {list(self.action.shape)}, {lengths['observations'] + 1} observations and "
                f"{', '.join(f'{lengths[name]} {name}' for name in flags)}"
            )

    def __len__(self) -> int:
        return self.action.shape[0]


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
