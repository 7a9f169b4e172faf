"""A demonstration in memory: what every reader returns."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import Tensor


@dataclass(frozen=True)
class Episode:
    """One demonstration of ``T`` steps.

    ``observations[t]`` is what is seen before ``action[t]``; the flags tell how step ``t`` ended.
    """

    observations: TensorDictBase  # [T + 1], its entries one step's: vectors [d], uint8 images [C, H, W]
    action: Tensor  # (T, action_dim) float32
    success: Tensor  # (T,) bool
    terminated: Tensor  # (T,) bool
    truncated: Tensor  # (T,) bool

    def __len__(self) -> int:
        return self.action.shape[0]
