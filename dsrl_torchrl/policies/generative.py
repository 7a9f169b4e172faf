"""What the flow, diffusion and shortcut policies share: a network over normalised chunks, and the way in and out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dsrl_torchrl.policies.arguments import positive_int
from dsrl_torchrl.policies.base_policy import BasePolicy
from dsrl_torchrl.policies.networks import make_network


class GenerativePolicy(BasePolicy):
    """A policy that turns noise into a chunk by calling one network ``sampler_steps`` times.

    Works in normalised space: the subclass's :meth:`sample` sees observations of unit variance and makes chunks in
    [-1, 1], so a decoded action never leaves the range of the demonstrations.

    Args:
        sampler_steps: number of network calls per chunk. Fewer are cheaper and narrow the spread over noise.
        network: ``{"kind": "mlp" | "unet", ...}`` and that network's options
            (:mod:`~dsrl_torchrl.policies.networks`); a 3x256 MLP by default.
    """

    policy_type: ClassVar[str]
    condition_dim: ClassVar[int] = 0  # features that a subclass appends to its network's observation

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        pred_horizon: int,
        obs_horizon: int = 1,
        sampler_steps: int = 5,
        network: Mapping[str, Any] | None = None,
        control_mode: str = "",
    ) -> None:
        super().__init__(observation_dim, action_dim, pred_horizon, obs_horizon, control_mode)
        self.sampler_steps = positive_int("sampler_steps", sampler_steps)
        self.network = make_network(
            network or {"kind": "mlp"}, observation_dim + self.condition_dim, action_dim, pred_horizon
        )

    @property
    def config(self) -> dict[str, Any]:
        """Every constructor argument, defaults included, as plain JSON values."""
        return {
            "observation_dim": self.observation_dim,
            "action_dim": self.action_dim,
            "pred_horizon": self.pred_horizon,
            "obs_horizon": self.obs_horizon,
            "sampler_steps": self.sampler_steps,
            "network": dict(self.network.options),
            "control_mode": self.control_mode,
        }

    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Normalised observation ``[B, obs]``, noise ``[B, H, A]`` -> normalised chunk ``[B, H, A]`` in [-1, 1]."""
        raise NotImplementedError

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        """``[*B, observation_dim]``, ``[*B, pred_horizon, action_dim]`` -> ``[*B, pred_horizon, action_dim]``."""
        self.check_shapes(observation, noise)
        dtype = self.normalisation.observation_mean.dtype  # simulators often hand out float64
        chunk = self.sample(
            self.normalisation.normalise_observation(observation.to(dtype)).reshape(-1, self.observation_dim),
            noise.to(dtype).reshape(-1, self.pred_horizon, self.action_dim),
        )
        return self.normalisation.denormalise_action(chunk).reshape(noise.shape)

    def squared_error(self, observation: Tensor, chunk: Tensor) -> Tensor:
        """The training objective before its reduction, at a random time and noise for every element.

        Normalised observation ``[B, obs]`` and expert chunk ``[B, H, A]`` -> ``[B, H, A]``. Draws from the global
        generator: first the noise, then the time.
        """
        raise NotImplementedError


def time_like(x: Tensor, value: float) -> Tensor:
    """``[B]`` filled with one diffusion or flow time, for ``x`` ``[B, H, A]``."""
    return torch.full((x.shape[0],), value, dtype=x.dtype, device=x.device)
