"""Policies that compute next to nothing: what is left of a request is the server's and the wire's."""

from __future__ import annotations

import numpy as np


def state(observation, noise):
    return 0.5 * noise[..., :7] + observation["state"][:, None, :7]


def cameras(observation, noise):
    return state(observation, noise) + observation["left"][:, 0, 0, 0, None, None] / np.float32(255)


state.noise_shape = cameras.noise_shape = (10, 32)
state.chunk_shape = cameras.chunk_shape = (10, 7)
state.entries = {"state": ("float32", (8,))}
cameras.entries = state.entries | {name: ("uint8", (3, 64, 64)) for name in ("left", "right")}
