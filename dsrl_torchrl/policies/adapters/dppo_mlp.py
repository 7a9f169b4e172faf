"""DPPO's networks beside its U-Net: the MLP over flattened chunks, plain or residual, and the MLP on the condition."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.adapters.conditional_unet1d import step_features

ACTIVATIONS = {
    "Mish": nn.Mish,
    "ReLU": nn.ReLU,
    "ELU": nn.ELU,
    "GELU": nn.GELU,
    "Tanh": nn.Tanh,
    "Softplus": nn.Softplus,
}
RESIDUAL_EPS = 1e-6  # of the layer norms of the residual MLP, in its code


class PlainMLP(nn.Module):
    """DPPO's ``MLP``, no activation behind the last layer.

    Args:
        sizes: of the layers, input first.
        activation: between them.
        norm: whether there is a layer norm before each activation.
    """

    def __init__(self, sizes: list[int], activation: str, norm: bool) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]()
        self.moduleList = nn.ModuleList()  # their names, as everywhere below: they are in the file
        for i, (into, out) in enumerate(pairwise(sizes)):
            layer: dict[str, nn.Module] = {"linear_1": nn.Linear(into, out)}
            if norm and i + 2 < len(sizes):
                layer["norm_1"] = nn.LayerNorm(out)
            self.moduleList.append(nn.ModuleDict(layer))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, sizes[0]]`` -> ``[B, sizes[-1]]``."""
        for i, layer in enumerate(self.moduleList):
            assert isinstance(layer, nn.ModuleDict)
            x = layer["linear_1"](x)
            x = layer["norm_1"](x) if "norm_1" in layer else x
            x = self.act(x) if i + 1 < len(self.moduleList) else x
        return x


class ResidualMLP(nn.Module):
    """DPPO's ``ResidualMLP``: two-layer pre-activation blocks of one width between two linear layers.

    Args:
        into, width, out: sizes.
        blocks: number of them.
        activation: in them.
        norm: whether there is a layer norm before each activation.
    """

    def __init__(self, into: int, width: int, out: int, blocks: int, activation: str, norm: bool) -> None:
        super().__init__()
        middle = [_ResidualBlock(width, activation, norm) for _ in range(blocks)]
        self.layers = nn.ModuleList([nn.Linear(into, width), *middle, nn.Linear(width, out)])

    def forward(self, x: Tensor) -> Tensor:
        """``[B, into]`` -> ``[B, out]``."""
        for layer in self.layers:
            x = layer(x)
        return x


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, activation: str, norm: bool) -> None:
        super().__init__()
        self.l1, self.l2, self.act = nn.Linear(width, width), nn.Linear(width, width), ACTIVATIONS[activation]()
        if norm:
            self.norm1, self.norm2 = (nn.LayerNorm(width, RESIDUAL_EPS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x) if hasattr(self, "norm1") else x
        h = self.l1(self.act(h))
        h = self.norm2(h) if hasattr(self, "norm2") else h
        return x + self.l2(self.act(h))


def mlp_of(tensors: Mapping[str, Tensor], activation: str, where: str) -> PlainMLP | ResidualMLP:
    """The MLP, without weights, that ``tensors`` are the state of.

    Raises:
        UserError: they are of another network, or an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise UserError(f"activation should be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    plain = _numbered(tensors, r"moduleList\.(\d+)\.linear_1\.weight")
    linear = _numbered(tensors, r"layers\.(\d+)\.weight")
    if plain:
        return PlainMLP(
            [plain[0].shape[1], *(w.shape[0] for w in plain)], activation, "moduleList.0.norm_1.weight" in tensors
        )
    if len(linear) == 2:
        blocks = len(_numbered(tensors, r"layers\.(\d+)\.l1\.weight"))
        (width, into), (out, _) = linear[0].shape, linear[1].shape
        return ResidualMLP(into, width, out, blocks, activation, "layers.1.norm1.weight" in tensors)
    raise UserError(f"{where} should hold one of DPPO's MLPs, it holds {', '.join(sorted(tensors)[:3]) or 'nothing'}")


def _numbered(tensors: Mapping[str, Tensor], pattern: str) -> list[Tensor]:
    found = {int(match[1]): tensor for name, tensor in tensors.items() if (match := re.fullmatch(pattern, name))}
    return [found[i] for i in sorted(found)]


class DiffusionMLP(nn.Module):
    """DPPO's ``DiffusionMLP``: flattened chunk, features of the step, condition -> flattened prediction.

    Args:
        mlp: on all of them.
        step_dim: features of the diffusion step.
        condition_mlp: on the condition, before.
    """

    def __init__(self, mlp: nn.Module, step_dim: int, condition_mlp: nn.Module | None) -> None:
        super().__init__()
        self.step_dim, self.mlp_mean, self.cond_mlp = step_dim, mlp, condition_mlp
        self.time_embedding = nn.ModuleDict(
            {"1": nn.Linear(step_dim, 2 * step_dim), "3": nn.Linear(2 * step_dim, step_dim)}
        )

    def forward(self, x: Tensor, t: int, condition: Tensor) -> Tensor:
        """``[B, H, A]``, a diffusion step, ``[B, condition]`` -> ``[B, H, A]``."""
        hidden, out = self.time_embedding["1"], self.time_embedding["3"]
        step = out(nn.functional.mish(hidden(step_features(t, self.step_dim, x))))
        condition = condition if self.cond_mlp is None else self.cond_mlp(condition)
        return self.mlp_mean(torch.cat([x.flatten(1), step.expand(len(x), -1), condition], -1)).view_as(x)


class EncodedCondition(nn.Module):
    """A network behind an MLP on its condition (``cond_mlp_dims`` of DPPO's U-Net)."""

    def __init__(self, condition_mlp: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.cond_mlp, self.network = condition_mlp, network

    def forward(self, x: Tensor, t: int, condition: Tensor) -> Tensor:
        """As the network's."""
        return self.network(x, t, self.cond_mlp(condition))


class FineTuned(nn.Module):
    """The network before fine-tuning in the first sampler steps, the fine-tuned one at diffusion steps below."""

    def __init__(self, before: nn.Module, after: nn.Module, below: int) -> None:
        super().__init__()
        self.before, self.after, self.below = before, after, below

    def extra_repr(self) -> str:
        """What the state dict does not hold."""
        return f"below={self.below}"

    def forward(self, x: Tensor, t: int, condition: Tensor) -> Tensor:
        """As the networks'."""
        return (self.after if t < self.below else self.before)(x, t, condition)
