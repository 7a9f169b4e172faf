"""A base policy whose prior lies around another noise than zero: around one that works, found by a search."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import torch
from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.base_policy import BasePolicy

#: ρ, of LiftPegUpright (docs/what-was-tried.md, "Around a noise that works").
SHARE = 0.7


def place(noise: Tensor, centre: Tensor, share: float) -> Tensor:
    """``ρ c + √(1 - ρ²) n``, of noise and centre alike, whether a chunk's or in a noise layout, which is linear."""
    return share * centre + (1 - share**2) ** 0.5 * noise


def coordinates(noise: Tensor, centre: Tensor, share: float) -> Tensor:
    """The inverse of :func:`place`."""
    return (noise - share * centre) / (1 - share**2) ** 0.5


class CentredPolicy(BasePolicy):
    """``decode(s, n) = base.decode(s, ρ c + √(1 - ρ²) n)`` (Eq. 38): with ``n ~ N(0, I)``, the prior around ``c``.

    Where ``c`` is a draw of the base policy's prior, ``ρ c + √(1 - ρ²) n`` has the prior's size. To whoever steers it,
    it is a base policy like any other: noise zero is ``ρ c``, every noise of the base policy can be reached
    (:meth:`place` is a bijection), and what narrows towards zero noise narrows towards ``ρ c``.

    Args:
        base: frozen.
        centre: ``c``, ``[noise_horizon, noise_dim]``.
        share: ρ, above 0 and below 1.

    Raises:
        UserError: a centre of another shape or not finite, or a share out of range.
    """

    centre: Tensor

    def __init__(self, base: BasePolicy, centre: Tensor, share: float = SHARE) -> None:
        shape = (base.noise_horizon, base.noise_dim)
        if tuple(centre.shape) != shape or not centre.isfinite().all():
            raise UserError(f"a centre should be a finite noise of shape {list(shape)}, got {list(centre.shape)}")
        if not 0 < share < 1:
            raise UserError(f"the centre's share should lie between 0 and 1, got {share}")
        super().__init__(
            base.action_dim,
            base.pred_horizon,
            in_keys=base.in_keys,
            obs_horizon=base.obs_horizon,
            noise_horizon=base.noise_horizon,
            noise_dim=base.noise_dim,
            first_action=base.first_action,
            control_mode=base.control_mode,
        )
        self.base, self.share, self.differentiable = base, float(share), base.differentiable
        self.register_buffer("centre", centre.detach().float().clone())
        self.take_after(base)

    def place(self, noise: Tensor) -> Tensor:
        """``[*B, noise_horizon, noise_dim]``, around zero -> the base policy's own noise, of the same shape."""
        return place(noise, self.centre.to(noise), self.share)

    def coordinates(self, noise: Tensor) -> Tensor:
        """The inverse of :meth:`place`."""
        return coordinates(noise, self.centre.to(noise), self.share)

    @property
    def dtype(self) -> torch.dtype | None:  # type: ignore[override]  # it may be of another rule
        """The base policy's."""
        return self.base.dtype

    def forward(self, *entries_and_noise: Any, **kwargs: Any) -> Tensor:
        """As the base policy's."""
        *entries, noise = entries_and_noise
        return self.base(*entries, self.place(noise), **kwargs)

    @property
    def features_dim(self) -> int | None:
        return self.base.features_dim

    def features(self, *entries: Any) -> Tensor:
        return self.base.features(*entries)

    def from_features(self, features: Tensor, noise: Tensor) -> Tensor:
        return self.base.from_features(features, self.place(noise))

    def observation_statistics(self, key: NestedKey) -> tuple[Tensor, Tensor] | None:
        return self.base.observation_statistics(key)

    def content_hash(self) -> str | None:
        content = self.base.content_hash()
        if content is None:
            return None
        centre = sha256(self.centre.cpu().float().contiguous().numpy().tobytes()).hexdigest()
        return f"{content}-centre-{centre[:16]}-{self.share}"
