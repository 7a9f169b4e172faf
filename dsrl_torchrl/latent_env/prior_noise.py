"""The base policy seen as a latent policy: noise from its own prior."""

from __future__ import annotations

from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase


class PriorNoise(TensorDictModuleBase):
    """``w = scale * N(0, I)``, whatever the observation: the base policy (scale 1) or its zero-noise mode (scale 0).

    Plain and unbounded, as the base policy's own user would draw it, in the noise layout that training uses.

    Args:
        latent_dim: size of the noise (:attr:`NoiseLayout.dim`).
        scale: 1 for the prior, 0 for zero noise.
    """

    in_keys: ClassVar = ["observation"]
    out_keys: ClassVar = ["action"]

    def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.scale = scale

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation = tensordict.get("observation")
        noise = torch.randn(*tensordict.batch_size, self.latent_dim, device=observation.device)
        return tensordict.set("action", self.scale * noise)
