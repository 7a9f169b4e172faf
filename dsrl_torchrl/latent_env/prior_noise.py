"""The base policy seen as a latent policy: noise from its own prior."""

from __future__ import annotations

from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase


class PriorNoise(TensorDictModuleBase):
    """``w = scale * N(0, I)``, whatever the observation: the base policy (scale 1) or its zero-noise mode (scale 0).

    Plain and unbounded, as the base policy's own user would draw it.

    Args:
        latent_dim: size of the noise: :attr:`NoiseDecoder.latent_dim` for the noise layout that training uses, the
            layout's ``full_dim`` for the base policy's own, with a noise for every step.
        scale: 1 for the prior, 0 for zero noise.
        device: of the noise: the latent env's.
    """

    in_keys: ClassVar[list] = []
    out_keys: ClassVar = ["action"]

    def __init__(self, latent_dim: int, scale: float = 1.0, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.scale = scale
        self.device = torch.device(device)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        noise = torch.randn(*tensordict.batch_size, self.latent_dim, device=self.device)
        return tensordict.set("action", self.scale * noise)
