"""Observation standardisation as a layer."""

from __future__ import annotations

import torch
from torch import nn


class Standardize(nn.Module):
    """``x -> (x - mean) / std`` for ``x`` ``[*B, dim]``, clamped to ±10 standard deviations.

    The statistics are the base policy's: they are part of a network that is saved whole, and never change during
    training (running statistics would move the input of a trained critic).
    """

    mean: torch.Tensor  # (dim,)
    std: torch.Tensor  # (dim,)

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - self.mean) / self.std).clamp(-10.0, 10.0)
