"""The spec of the latent action: a random action is the base policy's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchrl.data import Bounded
from torchrl.data.tensor_specs import BoundedContinuous


class _NoiseSpecMeta(type(Bounded)):  # type: ignore[misc]
    def __call__(cls, *args, **kwargs):
        # TorchRL's own makes a BoundedContinuous out of whatever is bounded.
        spec = super().__call__(*args, **kwargs)
        spec.__class__ = cls
        return spec


class NoiseSpec(BoundedContinuous, metaclass=_NoiseSpecMeta):
    """Noise in the box ``[low, high]``; :meth:`rand` draws the prior ``N(0, I)``, clamped to it.

    Uniform noise in the box, a bounded spec's default, is not what a base policy was trained on. As a property of the
    spec this holds wherever random actions are made: ``env.rand_action``, ``RandomPolicy``, a batch of latent envs.
    """

    def rand(self, shape: Sequence[int] | None = None) -> Tensor:
        """``[*shape, *self.shape]``."""
        noise = torch.randn(*(shape or ()), *self.shape, dtype=self.dtype, device=self.device)
        return noise.clamp_(self.low, self.high)

    def to(self, dest: torch.dtype | torch.device | str | int | None) -> NoiseSpec:
        spec = super().to(dest)
        spec.__class__ = type(self)  # TorchRL's makes a Bounded
        return spec
