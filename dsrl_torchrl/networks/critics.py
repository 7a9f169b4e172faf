"""``Q^W(s, w)`` and ``Q^A(s, a)``: one member of an ensemble as a module, all members in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn import functional as F

from dsrl_torchrl.networks.encoders import FEATURES_KEY
from dsrl_torchrl.networks.mlp import make_mlp

#: Candidates are evaluated in parts whose activations stay in a core's cache: 1.7 times as fast as all of them at once.
ROWS_AT_ONCE = 512


class Critic(TensorDictModule):
    """One member of a critic ensemble: the observation's entries and an action to ``state_action_value`` ``[*B, 1]``.

    Works in any TorchRL loss. Ours evaluate all members at once by :meth:`ensemble`; here that is ``torch.vmap``, so
    any network will do.

    Args:
        network: takes the entries of ``in_keys`` in order, the action last.
        in_keys: the observation's, then the action's.
    """

    def __init__(self, network: nn.Module, in_keys: Sequence[NestedKey]) -> None:
        super().__init__(network, in_keys=list(in_keys), out_keys=["state_action_value"])

    @property
    def observation_keys(self) -> list[NestedKey]:
        """What it reads beside the action."""
        return self.in_keys[:-1]

    def ensemble(self, params: TensorDictBase, observations: TensorDictBase, action: Tensor) -> Tensor:
        """``Q_i(s, a)``: params ``[N, ...]``, observations ``[*B]``, action ``[*B, ...]`` -> ``[N, *B]``."""
        entries = {key: observations.get(key) for key in self.observation_keys}
        batch = TensorDict({**entries, self.in_keys[-1]: action}, observations.batch_size)
        evaluate = torch.vmap(self._evaluate, (None, 0), randomness="different")
        return evaluate(batch, params)

    def _evaluate(self, batch: TensorDictBase, params: TensorDictBase) -> Tensor:
        with params.to_module(self):
            return self.module(*[batch.get(key) for key in self.in_keys]).squeeze(-1)

    def candidates(self, params: TensorDictBase, observations: TensorDictBase, action: Tensor) -> Tensor:
        """``Q_i(s, a_m)`` for M actions of every observation, ``[M, *B, ...]`` -> ``[N, M, *B]``."""
        return self.ensemble(params, observations.expand(len(action), *observations.batch_size), action)


def reduce_ensemble(values: Tensor, backup: str) -> Tensor:
    """``[N, *B]`` -> ``[*B]`` by the ensemble's ``min`` or ``mean``."""
    return values.mean(0) if backup == "mean" else values.min(0)[0]


class CriticMLP(nn.Module):
    """``Q(features, x)``: Linear (-> LayerNorm) -> activation layers over features and the scaled, flat action.

    Args:
        in_features: size of the features.
        centre, unit: the action enters as ``(action - centre) / unit``; of one action's shape, or its last axes.
        action_shape: of one action; flattened.
        num_cells: hidden widths.
        activation: class of the activation, without parameters.
        layer_norm: after every hidden layer. It bounds the extrapolation of a critic at high UTD (Ball et al. 2023,
            RLPD, section 4.2); the official DSRL runs use LayerNorm and Tanh.
        head_std: of the last layer's weights at first, so that values begin near 0 (RLinf: 0.01); ``None``: PyTorch's.
    """

    centre: Tensor
    unit: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        centre: Tensor,
        unit: Tensor,
        action_shape: Sequence[int],
        num_cells: Sequence[int],
        activation: type[nn.Module],
        layer_norm: bool,
        head_std: float | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("centre", centre.detach().clone())
        self.register_buffer("unit", unit.detach().clone())
        self.action_ndim = len(action_shape)
        size = in_features + torch.Size(action_shape).numel()
        self.mlp = make_mlp(size, num_cells, activation, layer_norm, out_features=1)
        if head_std is not None:
            # Uniform: a TorchRL loss draws the members of an ensemble anew between this one's extremes.
            nn.init.uniform_(self.mlp[-1].weight, -math.sqrt(3) * head_std, math.sqrt(3) * head_std)
            nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """``[*B, in_features]``, ``[*B, *action_shape]`` -> ``[*B, 1]``."""
        return self.mlp(torch.cat([features, self.flat(action, self.centre, self.unit)], dim=-1))

    def flat(self, action: Tensor, centre: Tensor, unit: Tensor) -> Tensor:
        """``[..., *action_shape]`` -> ``[..., n]``, scaled."""
        return ((action - centre) / unit).flatten(action.ndim - self.action_ndim)


class MLPCritic(Critic):
    """A :class:`CriticMLP` whose members are evaluated as batched matrix products: half of a vmap's time on a CPU."""

    module: CriticMLP

    def ensemble(self, params: TensorDictBase, observations: TensorDictBase, action: Tensor) -> Tensor:
        stacked = params.get("module")
        features, x = observations.get(self.in_keys[0]), self._flat(stacked, action)
        inputs = torch.cat([features, x], dim=-1)
        rows = inputs.reshape(-1, inputs.shape[-1]).expand(*params.batch_size, -1, -1)
        values = _layers(list(self.module.mlp.named_children()), stacked.get("mlp"), rows)
        return values.reshape(*params.batch_size, *x.shape[:-1])

    def candidates(self, params: TensorDictBase, observations: TensorDictBase, action: Tensor) -> Tensor:
        """As in :class:`Critic`; the observation's share of the first layer is computed once for all M."""
        stacked, layers = params.get("module"), list(self.module.mlp.named_children())
        features, x = observations.get(self.in_keys[0]), self._flat(stacked, action)
        size, mlp = features.shape[-1], stacked.get("mlp")
        first = layers[0][0]
        weight = mlp.get((first, "weight")).transpose(1, 2)  # (N, in_features + n, width)
        features = features.reshape(1, -1, size).expand(len(weight), -1, -1)
        of_observation = torch.baddbmm(mlp.get((first, "bias")).unsqueeze(1), features, weight[:, :size])
        rows = of_observation.shape[1]
        outputs = []
        for part in x.reshape(len(x), rows, -1).split(max(1, ROWS_AT_ONCE // max(rows, 1))):
            flat = part.reshape(1, -1, part.shape[-1]).expand(len(weight), -1, -1)
            h = torch.bmm(flat, weight[:, size:]).unflatten(1, part.shape[:2]) + of_observation.unsqueeze(1)
            outputs.append(_layers(layers[1:], mlp, h.flatten(1, 2)))
        return torch.cat(outputs, dim=1).squeeze(-1).unflatten(1, x.shape[:-1])

    def _flat(self, stacked: TensorDictBase, action: Tensor) -> Tensor:
        # The scales are the same in every member; a loss that has been moved has them in its parameters.
        return self.module.flat(action, stacked.get("centre")[0], stacked.get("unit")[0])


def make_q_noise(in_features: int, latent_dim: int, action_magnitude: float, **sizes) -> MLPCritic:
    """One member of ``Q^W``: ``features``, ``action`` ``[*B, latent_dim]``; the noise enters divided by its bound."""
    centre, unit = torch.zeros(latent_dim), torch.full((latent_dim,), action_magnitude)
    network = CriticMLP(in_features, centre=centre, unit=unit, action_shape=(latent_dim,), **sizes)
    return MLPCritic(network, [FEATURES_KEY, "action"])


def make_q_action(
    in_features: int, act_horizon: int, action_low: Tensor, action_high: Tensor, gain: float, **sizes
) -> MLPCritic:
    """One member of ``Q^A``: ``features``, ``chunk`` ``[*B, act_horizon, action_dim]``, in env units.

    Args:
        in_features: size of the features.
        act_horizon: executed actions in a chunk.
        action_low, action_high: ``[action_dim]``, scaled to ±gain: the range of the base policy's actions.
        gain: a base policy's noise moves its actions by a tenth to a quarter of the half range (its steerability).
            Scaled to ±1 that difference, the only one that steering can make, drowns among the observation's features;
            with the inverse of the steerability as gain it enters with unit variance, like the noise enters ``Q^W``.
        sizes: ``num_cells``, ``activation``, ``layer_norm``, ``head_std`` of :class:`CriticMLP`.
    """
    centre, unit = (action_low + action_high) / 2, (action_high - action_low) / (2 * gain)
    shape = (act_horizon, action_low.numel())
    network = CriticMLP(in_features, centre=centre, unit=unit, action_shape=shape, **sizes)
    return MLPCritic(network, [FEATURES_KEY, "chunk"])


def _layers(layers: Sequence[tuple[str, nn.Module]], stacked: TensorDictBase, h: Tensor) -> Tensor:
    """``[N, rows, in]`` through the same layers of N members, whose parameters are ``stacked``."""
    for name, layer in layers:
        if isinstance(layer, nn.Linear):
            weight, bias = stacked.get((name, "weight")), stacked.get((name, "bias"))
            h = torch.baddbmm(bias.unsqueeze(1), h, weight.transpose(1, 2))
        elif isinstance(layer, nn.LayerNorm):
            h = F.layer_norm(h, layer.normalized_shape, eps=layer.eps)
            h = torch.addcmul(stacked.get((name, "bias")).unsqueeze(1), h, stacked.get((name, "weight")).unsqueeze(1))
        else:
            h = layer(h)
    return h
