"""Sizes and kind of the learned networks, the same in both stages."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dsrl_torchrl.errors import UserError

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


@dataclass(frozen=True)
class NetworkConfig:
    """Latent policy and critics; the defaults are those of ``conf/config.yaml``."""

    num_critics: int = 5  # members of each ensemble
    num_cells: tuple[int, ...] = (128, 128, 128)
    activation: str = "relu"
    layer_norm: bool = True  # critics
    fourier_bands: tuple[float, ...] = (0.5, 1.0)  # of the observation's features; () for none
    chunk_gain: float = 5.0  # of Q^A's chunk input, about the inverse of the base policy's steerability
    initial_std: float = 0.5  # of the latent policy, before the squashing

    def __post_init__(self) -> None:
        if self.num_critics < 1:
            raise UserError(f"num_critics must be at least 1, got {self.num_critics}")
        if not self.num_cells or any(not width > 0 for width in self.num_cells):
            raise UserError(f"num_cells must be one or more positive widths, got {list(self.num_cells)}")
        for name in ("initial_std", "chunk_gain"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")
