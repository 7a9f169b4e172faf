"""How a flat latent action becomes the noise of a whole action chunk (``steer_mode`` of the official code)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dsrl_torchrl.errors import UserError

NOISE_LAYOUTS = ("full", "act_horizon", "repeat")


@dataclass(frozen=True)
class NoiseLayout:
    """Maps a latent action ``w`` ``[*B, dim]`` to chunk noise ``[*B, noise_horizon, noise_dim]``.

    - ``full``: an own noise for every step, ``dim = noise_horizon * noise_dim``;
    - ``act_horizon``: an own noise for every *executed* step, zeros before and behind (decoding stays deterministic),
      ``dim = act_horizon * noise_dim``;
    - ``repeat``: one step's noise repeated over the horizon (the practice of dsrl_pi0), ``dim = noise_dim``.

    Args:
        name: one of :data:`NOISE_LAYOUTS`.
        noise_horizon, noise_dim: of the base policy's noise.
        act_horizon: executed actions.
        first_action: the step that is executed first.

    Raises:
        UserError: unknown layout, or executed steps outside of the noise.
    """

    name: str
    noise_horizon: int
    noise_dim: int
    act_horizon: int
    first_action: int = 0

    def __post_init__(self) -> None:
        if self.name not in NOISE_LAYOUTS:
            raise UserError(f"noise_layout must be one of {', '.join(NOISE_LAYOUTS)}; got {self.name!r}")
        if self.name == "act_horizon" and self.first_action + self.act_horizon > self.noise_horizon:
            raise UserError(
                f"noise_layout=act_horizon needs a noise for each of the {self.act_horizon} executed steps from step "
                f"{self.first_action} on, but the base policy's noise has {self.noise_horizon}: use full or repeat"
            )

    @property
    def dim(self) -> int:
        """Size of the latent action."""
        steps = {"full": self.noise_horizon, "act_horizon": self.act_horizon, "repeat": 1}[self.name]
        return steps * self.noise_dim

    def to_chunk_noise(self, latent_action: torch.Tensor) -> torch.Tensor:
        """``[*B, dim]`` -> ``[*B, noise_horizon, noise_dim]``."""
        noise = latent_action.unflatten(-1, (-1, self.noise_dim))
        if self.name == "repeat":
            return noise.expand(*noise.shape[:-2], self.noise_horizon, self.noise_dim)
        if self.name == "act_horizon":
            behind = self.noise_horizon - self.first_action - self.act_horizon
            return torch.nn.functional.pad(noise, (0, 0, self.first_action, behind))
        return noise
