"""Polyak averaging of target networks (Eq. 11)."""

from __future__ import annotations

import torch
from tensordict import TensorDictParams
from torchrl.objectives import SoftUpdate


class PolyakUpdate(SoftUpdate):
    """TorchRL's :class:`~torchrl.objectives.SoftUpdate`, whose own step makes two TensorDicts of ``.data`` first."""

    @torch.no_grad()
    def _step(self, p_source: TensorDictParams, p_target: TensorDictParams) -> None:
        p_target.lerp_(p_source, 1 - self.eps)
