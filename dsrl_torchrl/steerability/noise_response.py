"""What the noise does to the executed actions: their spread and their clipping, over the scale of the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder

SCALES = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)

#: A normalised action this close to the end of its range counts as clipped.
CLIP_TOLERANCE = 1e-3

#: A squashed noise beyond this share of its bound has next to no gradient left: ``1 - tanh(u)² < 0.1``.
BOUND_SHARE = 0.95


@dataclass(frozen=True)
class NoiseResponse:
    """The executed actions decoded from ``scale * N(0, I)``, one entry for each scale; scale 1 is the base policy.

    Attributes:
        scales: standard deviation of the noise.
        spread: standard deviation over noises of the executed action, in half ranges, averaged over observations,
            executed steps and action dims.
        clipped: share of executed actions at an end of the action range, where more noise changes nothing.
    """

    scales: tuple[float, ...]
    spread: tuple[float, ...]
    clipped: tuple[float, ...]


@torch.no_grad()
def noise_response(
    decoder: NoiseDecoder,
    observations: TensorDictBase,
    *,
    scales: tuple[float, ...] = SCALES,
    n_noises: int = 16,
    seed: int = 0,
) -> NoiseResponse:
    """Measures spread and clipping over the noise scale; the same noises, scaled, for every scale.

    Args:
        decoder: base policy and noise layout.
        observations: ``[N]``, the base policy's entries.
        scales: noise scales, in standard deviations of the prior.
        n_noises: noises per observation; each scale costs as many forward passes of batch N.
        seed: of the noises.
    """
    noises = prior_noises(decoder, n_noises, len(observations), seed=seed)
    heads = [decode_normalised(decoder, observations, scale * noises) for scale in scales]
    return NoiseResponse(
        tuple(scales),
        tuple(float(head.std(0).mean()) for head in heads),
        tuple(clipped_share(head) for head in heads),
    )


def prior_noises(decoder: NoiseDecoder, n_noises: int, n_observations: int, *, seed: int) -> Tensor:
    """``[n_noises, n_observations, layout.dim]`` from ``N(0, I)``; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_noises, n_observations, decoder.layout.dim, generator=generator).to(decoder.device)


def decode_normalised(decoder: NoiseDecoder, observations: TensorDictBase, noises: Tensor) -> Tensor:
    """Executed heads scaled to the policy's action range: ±1 are its ends, 1 is half of it.

    Args:
        decoder: base policy and noise layout.
        observations: ``[N]``, the base policy's entries.
        noises: ``[M, N, layout.dim]``, M for each observation; decoded one by one, so that memory stays that of a
            batch of N.

    Returns:
        ``[M, N, act_horizon, action_dim]`` float32.
    """
    observations = observations.to(decoder.device)
    heads = (decoder.decode(observations, noise) for noise in noises)
    return torch.stack([decoder.base_policy.normalise_action(head).float() for head in heads])


def clipped_share(heads: Tensor) -> float:
    """Share of normalised actions, any shape, at or beyond an end of the range."""
    return float((heads.abs() >= 1 - CLIP_TOLERANCE).float().mean())


def bound_share(noises: Tensor, action_magnitude: float) -> float:
    """Share of a latent policy's noise components, any shape, beyond 0.95 of their bound."""
    return float((noises.abs() > BOUND_SHARE * action_magnitude).float().mean())
