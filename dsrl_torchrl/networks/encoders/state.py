"""What latent policy and critics see of an observation: standardised entries and their Fourier features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


class ObservationFeatures(nn.Module):
    """``x -> [z, sin(π f z), cos(π f z) for f in bands]`` with ``z = (x - mean) / std`` clamped to ±10.

    The statistics are the base policy's: they are part of a network that is saved whole, and never change during
    training (running statistics would move the input of a trained critic).

    The Fourier features counter the spectral bias of value networks (Yang et al. 2022, "Overcoming the spectral bias
    of neural value approximation"; Tancik et al. 2020). Robot tasks hinge on millimetres that are a tenth of an
    observation's standard deviation: a cube that hovers 3 cm from its goal for ever (value -1 / (1 - γ)) and one that
    arrives at 2.5 cm look alike to a plain MLP, which then lets the policy stall there.

    Args:
        mean, std: ``[dim]``.
        bands: frequencies in half cycles per standard deviation; empty for the standardised observation alone.
    """

    mean: torch.Tensor  # (dim,)
    std: torch.Tensor  # (dim,)

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, bands: Sequence[float] = (0.5, 1.0)) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())
        self.bands = tuple(bands)

    @property
    def out_features(self) -> int:
        """Number of features."""
        return self.mean.numel() * (1 + 2 * len(self.bands))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[*B, dim]`` -> ``[*B, out_features]``."""
        z = ((x - self.mean) / self.std).clamp(-10.0, 10.0)
        waves = [wave(math.pi * band * z) for band in self.bands for wave in (torch.sin, torch.cos)]
        return torch.cat([z, *waves], dim=-1)
