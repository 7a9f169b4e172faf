"""One member of the critic ensemble, ``Q^W(s, w)``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrl.modules import MLP, ValueOperator

from dsrl_torchrl.modules.observation_features import ObservationFeatures


class _StateActionMLP(nn.Module):
    def __init__(self, features: ObservationFeatures, input_scale: float, mlp: MLP) -> None:
        super().__init__()
        self.features = features
        self.mlp = mlp
        self.input_scale = input_scale

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.mlp(torch.cat([self.features(observation), action * self.input_scale], dim=-1))


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
    mlp = MLP(
        in_features=features.out_features + latent_dim,
        out_features=1,
        num_cells=list(num_cells),
        activation_class=activation,
        norm_class=nn.LayerNorm if layer_norm else None,
        norm_kwargs=[{"normalized_shape": width} for width in num_cells] if layer_norm else None,
        device=device,
    )
    network = _StateActionMLP(features, 1.0 / action_magnitude, mlp)
    return ValueOperator(network, in_keys=["observation", "action"])
