"""Noises and what they decode to, drawn once per stored state: the frozen policy never changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY

PAIR_NOISE, PAIR_CHUNK = "pair_noise", "pair_chunk"
ROWS_PER_DECODE = 4096


@torch.no_grad()
def draw_decoded_pairs(
    transitions: TensorDictBase,
    decode: Callable[[TensorDictBase, Tensor], Tensor],
    latent_dim: int,
    pairs: int,
    executed_share: float = 0.0,
) -> TensorDictBase:
    """Adds M = ``pairs`` pairs ``(w, decode(s, w))``, ``w ~ N(0, I)``, to each macro transition, in place.

    Distillation then costs no decode: M per state in all, in large batches, instead of one per state and update. A
    transition grows by ``M (latent_dim + act_horizon * action_dim)`` numbers: 4 KB for M = 16 and 32 noise dimensions.

    Args:
        transitions: ``[n]``, with the entries that ``decode`` reads.
        decode: the frozen policy, ``(observations [*B], noise [*B, latent_dim])`` to the executed head.
        latent_dim: size of the noise.
        pairs: M; 0 adds nothing.
        executed_share: of the M pairs, those that are the noise and the chunk that were executed. ``Q^W`` is then
            distilled where the latent policy acts, too: it moves many standard deviations of the prior along the few
            directions that matter, and a ``Q^W`` that has only seen the prior extrapolates there.

    Returns:
        The transitions with ``pair_noise`` ``[n, M, latent_dim]`` and ``pair_chunk``
        ``[n, M, act_horizon, action_dim]``.
    """
    if pairs == 0:
        return transitions
    like = transitions.get(("next", CHUNK_KEY))
    own = round(pairs * executed_share)
    drawn = pairs - own
    noise = torch.randn(len(transitions), drawn, latent_dim, dtype=like.dtype, device=like.device)
    observations = transitions.exclude("next")
    rows = max(1, ROWS_PER_DECODE // max(drawn, 1))
    parts = [
        decode(s.unsqueeze(1).expand(len(s), drawn), w)
        for s, w in zip(observations.split(rows), noise.split(rows), strict=True)
    ]
    chunk = torch.cat(parts)
    if own:
        executed = transitions.get("action"), like
        noise, chunk = (
            torch.cat([pair.unsqueeze(1).expand(-1, own, *pair.shape[1:]), prior], dim=1)
            for pair, prior in zip(executed, (noise, chunk), strict=True)
        )
    return transitions.set(PAIR_NOISE, noise).set(PAIR_CHUNK, chunk)


def pick_decoded_pair(batch: TensorDictBase) -> TensorDictBase:
    """Replaces the M pairs of each element of ``[*B]`` by one of them at random; a batch without pairs stays."""
    noise = batch.get(PAIR_NOISE, None)
    if noise is None:
        return batch
    choice = torch.randint(noise.shape[batch.ndim], batch.shape, device=noise.device)
    elements = tuple(torch.meshgrid(*(torch.arange(n, device=noise.device) for n in batch.shape), indexing="ij"))
    batch.set(PAIR_NOISE, noise[(*elements, choice)])
    return batch.set(PAIR_CHUNK, batch.get(PAIR_CHUNK)[(*elements, choice)])
