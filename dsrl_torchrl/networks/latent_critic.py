"""One member of the critic ensemble, ``Q^W(s, w)``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrl.modules import ValueOperator

from dsrl_torchrl.networks.critic_mlp import CriticMLP
from dsrl_torchrl.networks.encoders.state import ObservationFeatures


class _NoiseCritic(CriticMLP):
    input_scale: float

    def flat_action(self, action: torch.Tensor) -> torch.Tensor:
        return action * self.input_scale


def make_latent_critic(
    *,
    features: ObservationFeatures,
    latent_dim: int,
    action_magnitude: float,
    num_cells: Sequence[int] = (256, 256, 256),
    activation: type[nn.Module] = nn.Tanh,
    layer_norm: bool = True,
    device: torch.device | str = "cpu",
) -> ValueOperator:
    """``observation`` ``[*B, obs]``, ``action`` ``[*B, latent_dim]`` -> ``state_action_value`` ``[*B, 1]``.

    ``features`` are those of the observation. The noise enters divided by ``action_magnitude``. ``layer_norm`` bounds
    the extrapolation of a critic at high UTD (Ball et al. 2023, RLPD, section 4.2); the official DSRL runs use
    LayerNorm and Tanh. SACLoss makes the ensemble: it draws an own initialisation for every member.
    """
    network = _NoiseCritic(features, latent_dim, num_cells, activation, layer_norm, device)
    network.input_scale = 1.0 / action_magnitude
    return ValueOperator(network, in_keys=["observation", "action"])
