"""A demonstration in memory: what every reader returns."""

from __future__ import annotations

from dataclasses import dataclass

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
