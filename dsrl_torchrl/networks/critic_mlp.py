"""The network of a critic, for one member and for a whole ensemble at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import MLP

from dsrl_torchrl.networks.encoders.state import ObservationFeatures

#: Candidates are evaluated in parts whose activations stay in a core's cache: 1.7 times as fast as all of them at once.
ROWS_AT_ONCE = 512


class CriticMLP(nn.Module):
    """``Q(s, x)``: observation features next to a flat ``x``, through Linear (-> LayerNorm) -> activation layers.

    Args:
        features: of the observation; the same for every member of an ensemble.
        action_dim: size of ``x``.
        num_cells: hidden widths.
        activation: class of the activation, without parameters.
        layer_norm: after every hidden layer.
        device: of the parameters.
    """

    def __init__(
        self,
        features: ObservationFeatures,
        action_dim: int,
        num_cells: Sequence[int],
        activation: type[nn.Module],
        layer_norm: bool,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.features = features
        self.mlp = MLP(
            in_features=features.out_features + action_dim,
            out_features=1,
            num_cells=list(num_cells),
            activation_class=activation,
            norm_class=nn.LayerNorm if layer_norm else None,
            norm_kwargs=[{"normalized_shape": width} for width in num_cells] if layer_norm else None,
            device=device,
        )

    def flat_action(self, action: Tensor) -> Tensor:
        """What the MLP sees of the action, ``[*B, action_dim]``."""
        raise NotImplementedError

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """``[*B, obs]`` and the action -> ``[*B, 1]``."""
        return self.mlp(torch.cat([self.features(observation), self.flat_action(action)], dim=-1))

    def forward_ensemble(self, params: TensorDictBase, observation: Tensor, action: Tensor) -> Tensor:
        """All members at once: the same numbers as a ``vmap`` of :meth:`forward`, in half the time on a CPU.

        The features are computed once, every layer is one batched matrix product. Where an observation has several
        actions, its share of the first layer is computed once for all of them.

        Args:
            params: of this module, stacked ``[N, ...]``.
            observation: ``[*B, obs]``.
            action: ``[*B, ...]``, or ``[M, *B, ...]``: M candidates for every observation.

        Returns:
            ``[N, *B, 1]`` or ``[N, M, *B, 1]``.
        """
        # The scales of the inputs are the same in every member; a loss that has been moved has them in its parameters.
        with params.exclude("mlp")[0].to_module(self, preserve_module_state=False):
            features, x = self.features(observation), self.flat_action(action)
        layers = list(self.mlp.named_children())
        stacked = params.get("mlp")
        if x.ndim == features.ndim:
            x = torch.cat([features, x], dim=-1)
            return _layers(layers, stacked, x.reshape(1, -1, x.shape[-1])).unflatten(1, x.shape[:-1])
        candidates, size = len(x), features.shape[-1]
        name = layers[0][0]
        weight = stacked.get((name, "weight")).transpose(1, 2)  # (N, features + action_dim, width)
        features = features.reshape(1, -1, size).expand(len(weight), -1, -1)
        of_observation = torch.baddbmm(stacked.get((name, "bias")).unsqueeze(1), features, weight[:, :size])
        rows = of_observation.shape[1]
        outputs = []
        for part in x.reshape(candidates, rows, -1).split(max(1, ROWS_AT_ONCE // max(rows, 1))):
            flat = part.reshape(1, -1, part.shape[-1]).expand(len(weight), -1, -1)
            h = torch.bmm(flat, weight[:, size:]).unflatten(1, part.shape[:2]) + of_observation.unsqueeze(1)
            outputs.append(_layers(layers[1:], stacked, h.flatten(1, 2)))
        return torch.cat(outputs, dim=1).unflatten(1, x.shape[:-1])


def _layers(layers: Sequence[tuple[str, nn.Module]], stacked: TensorDictBase, h: Tensor) -> Tensor:
    """``[N or 1, rows, in]`` through the same layers of N members, whose parameters are ``stacked``."""
    for name, layer in layers:
        if isinstance(layer, nn.Linear):
            weight, bias = stacked.get((name, "weight")), stacked.get((name, "bias"))
            h = torch.baddbmm(bias.unsqueeze(1), h.expand(len(weight), -1, -1), weight.transpose(1, 2))
        elif isinstance(layer, nn.LayerNorm):
            h = F.layer_norm(h, layer.normalized_shape, eps=layer.eps)
            h = torch.addcmul(stacked.get((name, "bias")).unsqueeze(1), h, stacked.get((name, "weight")).unsqueeze(1))
        else:
            h = layer(h)
    return h
