"""A latent policy without a distribution of its own: features to one noise."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import nn

from dsrl_torchrl.networks.encoders import FEATURES_KEY
from dsrl_torchrl.networks.mlp import make_mlp


def make_deterministic_actor(
    in_features: int,
    latent_dim: int,
    last: nn.Module,
    *,
    num_cells: Sequence[int],
    activation: type[nn.Module],
    layer_norm: bool = False,
    in_key: NestedKey = FEATURES_KEY,
    near_zero: bool = True,
) -> TensorDictModule:
    """``features`` ``[*B, in_features]`` -> ``action`` ``[*B, latent_dim]``.

    Args:
        in_features: size of the features.
        latent_dim: size of the noise.
        last: what the linear output goes through, such as a squashing.
        num_cells: hidden widths.
        activation: of the hidden layers.
        layer_norm: after every hidden layer.
        in_key: of the features.
        near_zero: the first linear output is about 0 for every state; otherwise it is as PyTorch initialises it.
    """
    head = nn.Linear(num_cells[-1], latent_dim)
    if near_zero:
        nn.init.uniform_(head.weight, -1e-3, 1e-3)
        nn.init.zeros_(head.bias)
    hidden = make_mlp(in_features, num_cells, activation, layer_norm)
    return TensorDictModule(nn.Sequential(hidden, head, last), in_keys=[in_key], out_keys=["action"])
