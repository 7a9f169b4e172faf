"""The latent policy ``π^W(w | s)``: a squashed diagonal Gaussian over noise (SPEC §2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import Bounded
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal

from dsrl_torchrl.networks.encoders.state import ObservationFeatures


def make_latent_actor(
    *,
    features: ObservationFeatures,
    latent_dim: int,
    action_magnitude: float,
    num_cells: Sequence[int] = (256, 256, 256),
    activation: type[nn.Module] = nn.Tanh,
    initial_std: float = 0.5,
    device: torch.device | str = "cpu",
) -> ProbabilisticActor:
    """``observation`` ``[*B, obs]`` -> ``action`` ``[*B, latent_dim]`` in ``±action_magnitude``.

    Args:
        features: of the observation.
        latent_dim: size of the noise (:attr:`NoiseLayout.dim`).
        action_magnitude: bound of the noise, in standard deviations of the prior.
        num_cells: hidden widths. The official runs use three layers of 128 (Gym, LIBERO) to 2048 (Robomimic).
        activation: the official runs use Tanh.
        initial_std: standard deviation before the squashing, in units of ``action_magnitude``, at initialisation.
    """
    head = nn.Linear(num_cells[-1], 2 * latent_dim, device=device)
    # The first policy is the same for every state: mean at zero noise, std as asked.
    nn.init.uniform_(head.weight, -1e-3, 1e-3)
    nn.init.zeros_(head.bias)
    network = nn.Sequential(
        features,
        MLP(
            in_features=features.out_features,
            out_features=num_cells[-1],
            num_cells=list(num_cells[:-1]),
            activation_class=activation,
            activate_last_layer=True,
            device=device,
        ),
        head,
        NormalParamExtractor(scale_mapping=f"biased_softplus_{initial_std}", scale_lb=1e-4),
    )
    # tanh_loc keeps the mean within ±5 before the squashing, from where it can still come back.
    bounds = {"low": -action_magnitude, "high": action_magnitude, "tanh_loc": True}
    return ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        out_keys=["action"],
        distribution_class=TanhNormal,
        distribution_kwargs=bounds,
        spec=Bounded(-action_magnitude, action_magnitude, shape=(latent_dim,), device=device),
        return_log_prob=False,
    )
