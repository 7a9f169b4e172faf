"""How a flat latent action becomes the noise of a whole action chunk (``steer_mode`` of the official code)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dsrl_torchrl.errors import UserError

NOISE_LAYOUTS = ("full", "act_horizon", "repeat", "interpolated")


@dataclass(frozen=True)
class NoiseLayout:
    """Maps a latent action ``w`` ``[*B, dim]`` to chunk noise ``[*B, noise_horizon, noise_dim]``.

    - ``full``: an own noise for every step, ``dim = noise_horizon * noise_dim``;
    - ``act_horizon``: an own noise for every *executed* step, zeros before and behind (decoding stays deterministic),
      ``dim = act_horizon * noise_dim``;
    - ``repeat``: one step's noise repeated over the horizon (the practice of dsrl_pi0), ``dim = noise_dim``;
    - ``interpolated``: the noise of ``knots`` steps, equally spaced from the first to the last, and between two of
      them their linear interpolation, scaled to unit variance (:func:`knot_weights`), ``dim = knots * noise_dim``.

    Under every layout but ``act_horizon`` each step's noise is ``N(0, I)`` where ``w`` is; what differs is how the
    steps hang together.

    Args:
        name: one of :data:`NOISE_LAYOUTS`.
        noise_horizon, noise_dim: of the base policy's noise.
        act_horizon: executed actions.
        first_action: the step that is executed first.
        knots: of ``interpolated``, between 2 and ``noise_horizon``; the others have none.

    Raises:
        UserError: unknown layout, executed steps outside of the noise, or a number of knots out of range.
    """

    name: str
    noise_horizon: int
    noise_dim: int
    act_horizon: int
    first_action: int = 0
    knots: int = 2

    def __post_init__(self) -> None:
        if self.name not in NOISE_LAYOUTS:
            raise UserError(f"noise_layout must be one of {', '.join(NOISE_LAYOUTS)}; got {self.name!r}")
        if self.name == "act_horizon" and self.first_action + self.act_horizon > self.noise_horizon:
            raise UserError(
                f"noise_layout=act_horizon needs a noise for each of the {self.act_horizon} executed steps from step "
                f"{self.first_action} on, but the base policy's noise has {self.noise_horizon}: use full or repeat"
            )
        if self.name == "interpolated" and not 2 <= self.knots <= self.noise_horizon:
            raise UserError(
                f"noise_layout=interpolated needs between 2 and {self.noise_horizon} knots (the steps of the base "
                f"policy's noise), got {self.knots}: one knot is repeat, one for every step is full"
            )

    @property
    def dim(self) -> int:
        """Size of the latent action."""
        steps = {
            "full": self.noise_horizon, "act_horizon": self.act_horizon, "repeat": 1, "interpolated": self.knots
        }  # fmt: skip
        return steps[self.name] * self.noise_dim

    @property
    def full_dim(self) -> int:
        """Size of the base policy's own noise, with which it runs where nobody steers it."""
        return self.noise_horizon * self.noise_dim

    def to_chunk_noise(self, latent_action: Tensor) -> Tensor:
        """``[*B, dim]`` -> ``[*B, noise_horizon, noise_dim]``; the base policy's own, ``[*B, full_dim]``, stays it."""
        noise = latent_action.unflatten(-1, (-1, self.noise_dim))
        if latent_action.shape[-1] == self.full_dim:  # of which every layout of this size is a reshape
            return noise
        if self.name == "repeat":
            return noise.expand(*noise.shape[:-2], self.noise_horizon, self.noise_dim)
        if self.name == "act_horizon":
            behind = self.noise_horizon - self.first_action - self.act_horizon
            return torch.nn.functional.pad(noise, (0, 0, self.first_action, behind))
        if self.name == "interpolated":
            return knot_weights(self.noise_horizon, self.knots, noise.dtype, noise.device) @ noise
        return noise


@lru_cache
@torch.inference_mode(False)  # whoever calls first: the tensor is everybody's, those who need gradients included
def knot_weights(noise_horizon: int, knots: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each knot gives to each step's noise, ``[noise_horizon, knots]``.

    Step t lies at ``p = t (knots - 1) / (noise_horizon - 1)``, the fraction ``a`` of the way from knot ``i`` to the
    next, and ``n_t = ((1 - a) z_i + a z_{i+1}) / √((1 - a)² + a²)``: of unit variance wherever it lies, as the prior.
    """
    # Where it is used: a compiler traces this without the cache, and a CUDA graph cannot copy from the host.
    position = torch.arange(noise_horizon, dtype=torch.float64, device=device) * (knots - 1) / (noise_horizon - 1)
    weights = (1 - (position[:, None] - torch.arange(knots, device=device)).abs()).clamp(min=0)
    return (weights / weights.norm(dim=1, keepdim=True)).to(dtype)
