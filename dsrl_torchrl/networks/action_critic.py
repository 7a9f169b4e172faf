"""One member of the action-space critic ensemble, ``Q^A(s, a)`` (SPEC §3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrl.modules import ValueOperator

from dsrl_torchrl.networks.critic_mlp import CriticMLP
from dsrl_torchrl.networks.encoders.state import ObservationFeatures


class _ChunkCritic(CriticMLP):
    centre: torch.Tensor  # (action_dim,)
    unit: torch.Tensor  # (action_dim,)

    def flat_action(self, action: torch.Tensor) -> torch.Tensor:
        return ((action - self.centre) / self.unit).flatten(-2)  # (*B, act_horizon * action_dim)


def make_action_critic(
    *,
    features: ObservationFeatures,
    act_horizon: int,
    action_low: torch.Tensor,
    action_high: torch.Tensor,
    gain: float = 5.0,
    num_cells: Sequence[int] = (256, 256, 256),
    activation: type[nn.Module] = nn.Tanh,
    layer_norm: bool = True,
    device: torch.device | str = "cpu",
) -> ValueOperator:
    """``observation`` ``[*B, obs]``, ``chunk`` ``[*B, act_horizon, action_dim]`` -> ``state_action_value`` ``[*B, 1]``.

    Args:
        features: of the observation.
        act_horizon: executed actions in a chunk.
        action_low, action_high: ``[action_dim]``, scaled to ±gain: the range of the base policy's training data, where
            all decoded actions lie.
        gain: a base policy's noise moves its actions by a tenth to a quarter of the half range (its steerability).
            Scaled to ±1 that difference, the only one that steering can make, drowns among the observation's features;
            with the inverse of the steerability as gain it enters with unit variance, like the noise enters ``Q^W``.
        num_cells, activation, layer_norm: as in :func:`~dsrl_torchrl.networks.latent_critic.make_latent_critic`.
    """
    size = act_horizon * action_low.numel()
    network = _ChunkCritic(features, size, num_cells, activation, layer_norm, device)
    network.register_buffer("centre", ((action_low + action_high) / 2).detach().clone())
    network.register_buffer("unit", ((action_high - action_low) / (2 * gain)).detach().clone())
    return ValueOperator(network, in_keys=["observation", "chunk"])
