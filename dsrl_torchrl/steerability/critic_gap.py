"""The gap between the two critics, ``Q^W(s, w) - Q^A(s, decode(s, w))``: what distillation has missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder

#: An ensemble: ``(observation [*B, obs], w [*B, dim] or chunk [*B, act_horizon, action_dim]) -> [n_critics, *B]``.
EnsembleCritic = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CriticGap:
    """``Q^W(s, w) - Q^A(s, decode(s, w))``, both averaged over their ensembles, in units of return.

    Attributes:
        mean: over observations and noises; positive where Q^W over-estimates.
        std: over the same.
        correlation: Pearson's, between the two critics over the noises of one observation (each critic's mean over
            them subtracted, pooled over observations): whether Q^W ranks the noises as Q^A ranks their chunks, which is
            all that the actor uses. ``None`` where one of the critics does not tell noises apart.
        q_action_std: standard deviation of Q^A over observations and noises: the scale that ``mean`` compares with.
    """

    mean: float
    std: float
    correlation: float | None
    q_action_std: float


@torch.no_grad()
def critic_gap(
    decoder: NoiseDecoder,
    q_action: EnsembleCritic,
    q_noise: EnsembleCritic,
    observations: Tensor,
    noises: Tensor,
) -> CriticGap:
    """Compares the critics where it matters: on prior noise (where Q^W was distilled) and on a latent policy's.

    Args:
        decoder: base policy and noise layout.
        q_action: Q^A, an ensemble; reads the executed chunk in env units.
        q_noise: Q^W, an ensemble.
        observations: ``[N, obs]`` in env units.
        noises: ``[M, N, layout.dim]``, M for each observation.
    """
    pairs = []
    for noise in noises:
        chunk = decoder.decode(observations, noise)
        pairs.append(torch.stack([q_action(observations, chunk).mean(0), q_noise(observations, noise).mean(0)]))
    action_value, noise_value = torch.stack(pairs, 1).double()  # (M, N) each
    gap = noise_value - action_value
    return CriticGap(
        float(gap.mean()),
        float(gap.std()),
        _correlation(action_value - action_value.mean(0), noise_value - noise_value.mean(0)),
        float(action_value.std()),
    )


def _correlation(x: Tensor, y: Tensor) -> float | None:
    scale = x.norm() * y.norm()
    # A deterministic latent policy repeats its noise: what is left is rounding.
    if min(x.norm(), y.norm()) <= 1e-6 * x.numel() ** 0.5:
        return None
    return float((x * y).sum() / scale)


@torch.no_grad()
def sample_latent_policy(policy: TensorDictModuleBase, observations: Tensor, n_noises: int, *, seed: int = 0) -> Tensor:
    """Draws ``[n_noises, N, layout.dim]`` from a latent policy that reads ``observation`` and writes ``action``."""
    with torch.random.fork_rng(), set_exploration_type(ExplorationType.RANDOM):
        torch.manual_seed(seed)
        batch = TensorDict({"observation": observations}, [len(observations)])
        return torch.stack([policy(batch.copy())["action"] for _ in range(n_noises)])
