"""The arithmetic floor of an update: its matrix products alone, forward and backward, on the same shapes.

No update can be faster without doing less; what is above the floor is activations, normalisation, optimisers, sampling
and the framework's own time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.setting import Setting
from dsrl_torchrl.policies.networks import TIME_FEATURES

FORWARD, GRAD_INPUT, GRAD_WEIGHT = "forward", "grad_input", "grad_weight"


@dataclass(frozen=True)
class Product:
    """A product of a linear layer ``[rows, fan_in] -> [rows, fan_out]`` for all members of an ensemble at once."""

    kind: str
    members: int
    rows: int
    fan_in: int
    fan_out: int

    @property
    def flops(self) -> int:
        """Floating-point operations; the same for all three kinds."""
        return 2 * self.members * self.rows * self.fan_in * self.fan_out

    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """Left, right and result, with the strides that autograd's products have."""
        x = torch.randn(self.members, self.rows, self.fan_in)
        grad = torch.randn(self.members, self.rows, self.fan_out)
        weight = torch.randn(self.members, self.fan_out, self.fan_in)
        operands = {
            FORWARD: (x, weight.mT, grad),
            GRAD_INPUT: (grad, weight, x),
            GRAD_WEIGHT: (grad.mT, x, weight),
        }[self.kind]
        # One network is multiplied without a batch dimension, which is what nn.Linear does.
        return operands if self.members > 1 else tuple(t.squeeze(0) for t in operands)  # type: ignore[return-value]


def forward(sizes: Sequence[int], rows: int, members: int = 1) -> list[Product]:
    """Products of an MLP's forward pass."""
    return [Product(FORWARD, members, rows, i, o) for i, o in pairwise(sizes)]


def backward(
    sizes: Sequence[int], rows: int, members: int = 1, *, weights: bool = True, inputs: bool = False
) -> list[Product]:
    """Products of an MLP's backward pass.

    Args:
        sizes: of its layers, input first.
        rows: batch size.
        members: of the ensemble.
        weights: the weights' gradients are wanted.
        inputs: the input's gradient is wanted; those of the hidden layers' inputs are needed in any case.
    """
    products = []
    layers = list(pairwise(sizes))
    for depth, (fan_in, fan_out) in reversed(list(enumerate(layers))):
        if weights:
            products.append(Product(GRAD_WEIGHT, members, rows, fan_in, fan_out))
        if inputs or depth > 0:
            products.append(Product(GRAD_INPUT, members, rows, fan_in, fan_out))
    return products


def sac_products(setting: Setting) -> list[Product]:
    """DSRL-SAC: TD target, critic step, actor step."""
    actor, critic, n, rows = _actor(setting), _critic(setting), setting.num_critics, setting.batch_size
    return [
        *forward(actor, rows),
        *forward(critic, rows, n),
        *forward(critic, rows, n),
        *backward(critic, rows, n),
        *_actor_step(setting),
    ]


def na_products(setting: Setting) -> list[Product]:
    """DSRL-NA: TD target with its decode, ``Q^A``'s step, the distillation's decode and step, actor step."""
    actor, critic, n, rows = _actor(setting), _critic(setting), setting.num_critics, setting.batch_size
    return [
        *forward(actor, rows),
        *_decode(setting),
        *forward(critic, rows, n),
        *forward(critic, rows, n),
        *backward(critic, rows, n),
        *_decode(setting),
        *forward(critic, rows, n),
        *forward(critic, rows, n),
        *backward(critic, rows, n),
        *_actor_step(setting),
    ]


def _actor(setting: Setting) -> list[int]:
    return [setting.features, *[setting.width] * setting.depth, 2 * setting.noise]


def _critic(setting: Setting) -> list[int]:
    # The noise, or an executed chunk of as many numbers: both critics have the same sizes.
    return [setting.features + setting.noise, *[setting.width] * setting.depth, 1]


def _actor_step(setting: Setting) -> list[Product]:
    actor, critic, n, rows = _actor(setting), _critic(setting), setting.num_critics, setting.batch_size
    return [
        *forward(actor, rows),
        *forward(critic, rows, n),
        *backward(critic, rows, n, weights=False, inputs=True),
        *backward(actor, rows),
    ]


def _decode(setting: Setting) -> list[Product]:
    size = setting.observation + setting.noise + TIME_FEATURES
    network = [size, *[setting.base_width] * setting.base_depth, setting.noise]
    return forward(network, setting.batch_size) * setting.sampler_steps


class Floor:
    """Runs the products; operands are made once."""

    def __init__(self, products: Sequence[Product]) -> None:
        self.operands = [product.operands() for product in products]
        self.flops = sum(product.flops for product in products)

    def run(self, updates: int) -> None:
        for _ in range(updates):
            for left, right, result in self.operands:
                torch.matmul(left, right, out=result)
