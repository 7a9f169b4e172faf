"""Noises and what they decode to, drawn once per stored state: the frozen policy never changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer

NOISE_KEY, CHUNK_KEY = "alias_noise", "alias_chunk"
ROWS_PER_DECODE = 4096


@torch.no_grad()
def draw_alias_pairs(
    transitions: TensorDictBase,
    decode: Callable[[Tensor, Tensor], Tensor],
    latent_dim: int,
    samples: int,
    behaviour_fraction: float = 0.0,
) -> TensorDictBase:
    """Adds ``M = samples`` pairs ``(w, decode(s, w))``, ``w ~ N(0, I)``, to each macro transition, in place.

    Distillation then costs no decode: M per state in all, in large batches, instead of one per state and update. A
    transition grows by ``M (latent_dim + act_horizon * action_dim)`` numbers: 4 KB for M = 16 and 32 noise dimensions.

    Args:
        transitions: ``[n]``, with ``observation``.
        decode: the frozen policy, ``(observation [*B, obs], noise [*B, latent_dim])`` to the executed head.
        latent_dim: size of the noise.
        samples: M; 0 adds nothing.
        behaviour_fraction: share of the M pairs that are the noise and the chunk that were executed. ``Q^W`` is then
            distilled where the latent policy acts, too: it moves many standard deviations of the prior along the few
            directions that matter, and a ``Q^W`` that has only seen the prior extrapolates there.

    Returns:
        The transitions with ``alias_noise`` ``[n, M, latent_dim]`` and ``alias_chunk``
        ``[n, M, act_horizon, action_dim]``.
    """
    if samples == 0:
        return transitions
    observation = transitions["observation"]
    own = round(samples * behaviour_fraction)
    drawn = samples - own
    noise = torch.randn(len(observation), drawn, latent_dim, dtype=observation.dtype, device=observation.device)
    rows = max(1, ROWS_PER_DECODE // max(drawn, 1))
    chunk = torch.cat(
        [
            decode(s.unsqueeze(1).expand(-1, drawn, -1), w)
            for s, w in zip(observation.split(rows), noise.split(rows), strict=True)
        ]
    )
    if own:
        executed = transitions["action"], transitions["next", "executed_chunk"]
        noise, chunk = (
            torch.cat([pair.unsqueeze(1).expand(-1, own, *pair.shape[1:]), prior], dim=1)
            for pair, prior in zip(executed, (noise, chunk), strict=True)
        )
    return transitions.set(NOISE_KEY, noise).set(CHUNK_KEY, chunk)


def refresh_alias_pairs(buffer: ReplayBuffer, states: int, draw: Callable[[TensorDictBase], TensorDictBase]) -> None:
    """Draws the pairs of some stored states anew, in place, so that M pairs are not all that a state ever shows.

    Args:
        buffer: holds transitions with pairs.
        states: how many, at random with replacement.
        draw: :func:`draw_alias_pairs` with the options that the stored pairs were drawn with.
    """
    index = torch.randint(len(buffer), (states,))
    buffer[index] = draw(buffer[index])


def pick_alias_pair(batch: TensorDictBase) -> TensorDictBase:
    """Replaces the M pairs of each element of ``[*B]`` by one of them at random; a batch without pairs stays."""
    noise = batch.get(NOISE_KEY, None)
    if noise is None:
        return batch
    choice = torch.randint(noise.shape[batch.ndim], batch.shape, device=noise.device)
    elements = tuple(torch.meshgrid(*(torch.arange(n, device=noise.device) for n in batch.shape), indexing="ij"))
    batch.set(NOISE_KEY, noise[(*elements, choice)])
    return batch.set(CHUNK_KEY, batch.get(CHUNK_KEY)[(*elements, choice)])
