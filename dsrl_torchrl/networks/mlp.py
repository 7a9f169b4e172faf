"""The multi-layer perceptron of actors and critics, with a LayerNorm where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchrl.modules import MLP


def make_mlp(
    in_features: int,
    num_cells: Sequence[int],
    activation: type[nn.Module],
    layer_norm: bool,
    *,
    out_features: int | None = None,
) -> MLP:
    """``[*B, in_features]`` -> ``[*B, num_cells[-1]]``, or ``[*B, out_features]``.

    Args:
        in_features: size of the input.
        num_cells: hidden widths.
        activation: of the hidden layers.
        layer_norm: after every hidden layer.
        out_features: of a linear layer behind them; ``None``: the hidden layers alone.
    """
    widths = list(num_cells)
    return MLP(
        in_features=in_features,
        out_features=widths[-1] if out_features is None else out_features,
        num_cells=widths[:-1] if out_features is None else widths,
        activation_class=activation,
        activate_last_layer=out_features is None,
        norm_class=nn.LayerNorm if layer_norm else None,
        norm_kwargs=[{"normalized_shape": width} for width in widths] if layer_norm else None,
    )
