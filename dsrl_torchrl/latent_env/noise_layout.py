"""How a flat latent action becomes the noise of a whole action chunk (SPEC §1, ``steer_mode``)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dsrl_torchrl.errors import UserError

NOISE_LAYOUTS = ("full", "act_horizon", "repeat")


@dataclass(frozen=True)
class NoiseLayout:
    """Maps a latent action ``w`` ``[*B, dim]`` to chunk noise ``[*B, pred_horizon, action_dim]``.

    - ``full``: an own noise for every predicted step, ``dim = pred_horizon * action_dim``;
    - ``act_horizon``: an own noise for every *executed* step, zeros behind it (decoding stays deterministic),
      ``dim = act_horizon * action_dim``;
    - ``repeat``: one step's noise repeated over the horizon (the practice of dsrl_pi0), ``dim = action_dim``.

    Raises:
        UserError: unknown layout, or ``act_horizon`` outside ``1..pred_horizon``.
    """

    name: str
    pred_horizon: int
    act_horizon: int
    action_dim: int

    def __post_init__(self) -> None:
        if self.name not in NOISE_LAYOUTS:
            raise UserError(f"noise_layout must be one of {', '.join(NOISE_LAYOUTS)}; got {self.name!r}")
        if not 1 <= self.act_horizon <= self.pred_horizon:
            raise UserError(
                f"act_horizon must lie between 1 and the base policy's pred_horizon {self.pred_horizon}; "
                f"got {self.act_horizon}"
            )

    @property
    def dim(self) -> int:
        """Size of the latent action."""
        steps = {"full": self.pred_horizon, "act_horizon": self.act_horizon, "repeat": 1}[self.name]
        return steps * self.action_dim

    def to_chunk_noise(self, latent_action: torch.Tensor) -> torch.Tensor:
        """``[*B, dim]`` -> ``[*B, pred_horizon, action_dim]``."""
        noise = latent_action.unflatten(-1, (-1, self.action_dim))
        if self.name == "repeat":
            return noise.expand(*noise.shape[:-2], self.pred_horizon, self.action_dim)
        if self.name == "act_horizon":
            return torch.nn.functional.pad(noise, (0, 0, 0, self.pred_horizon - self.act_horizon))
        return noise
