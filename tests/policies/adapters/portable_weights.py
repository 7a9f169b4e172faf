"""Weights by formula, the same bits on every machine: for fixtures of networks that are too large to commit."""

from __future__ import annotations

import zlib

import torch

MULTIPLIER, MODULUS = 1_103_515_245, 2**31  # a linear congruence of the index: exact in int64


def uniform(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """In [-1, 1), by name and index."""
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.int64) + zlib.crc32(name.encode()) % 1_000_003
    mixed = (index * MULTIPLIER + 12_345) % MODULUS
    mixed = (mixed ^ (mixed >> 13)) * MULTIPLIER % MODULUS
    return ((mixed / MODULUS).to(torch.float32) * 2 - 1).reshape(shape)


def weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Of unit gain for matrices and kernels; near 1 for norms, small for biases."""
    if len(shape) > 1:
        return uniform(name, shape) * (3 / torch.Size(shape[1:]).numel()) ** 0.5
    near = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
    return near + 0.1 * uniform(name, shape)


def fill(state: dict[str, torch.Tensor], keep: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """``state`` with other weights; integers, and names that end in one of ``keep``, stay."""
    return {
        name: weights(name, tuple(t.shape)) if t.is_floating_point() and not name.endswith(keep) else t
        for name, t in state.items()
    }
