"""The gap between the two critics, ``Q^W(s, w) - Q^A(s, decode(s, w))``: what distillation has missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder

#: An ensemble: ``(observations [*B], w [*B, dim] or chunk [*B, act_horizon, action_dim]) -> [n_critics, *B]``, or
#: ``None`` from an algorithm that has no such critic.
EnsembleCritic = Callable[[TensorDictBase, Tensor], "Tensor | None"]


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
    observations: TensorDictBase,
    noises: Tensor,
) -> CriticGap | None:
    """Compares the critics where it matters: on prior noise (where Q^W was distilled) and on a latent policy's.

    Args:
        decoder: base policy and noise layout.
        q_action: Q^A, an ensemble; reads the executed chunk in env units.
        q_noise: Q^W, an ensemble.
        observations: ``[N]``, what decoder and critics read, on the decoder's device.
        noises: ``[M, N, layout.dim]``, M for each observation.

    Returns:
        The gap; ``None`` where the algorithm has only one of the critics.
    """
    pairs = []
    for noise in noises:
        action_value = q_action(observations, decoder.decode(observations, noise))
        noise_value = q_noise(observations, noise)
        if action_value is None or noise_value is None:
            return None
        pairs.append(torch.stack([action_value.mean(0), noise_value.mean(0)]))
    action_values, noise_values = torch.stack(pairs, 1).double()  # (M, N) each
    gap = noise_values - action_values
    return CriticGap(
        float(gap.mean()),
        float(gap.std()),
        _correlation(action_values - action_values.mean(0), noise_values - noise_values.mean(0)),
        float(action_values.std()),
    )


def _correlation(x: Tensor, y: Tensor) -> float | None:
    scale = x.norm() * y.norm()
    # A deterministic latent policy repeats its noise: what is left is rounding.
    if min(x.norm(), y.norm()) <= 1e-6 * x.numel() ** 0.5:
        return None
    return float((x * y).sum() / scale)


@torch.no_grad()
def sample_latent_policy(
    policy: TensorDictModuleBase, observations: TensorDictBase, n_noises: int, *, seed: int = 0
) -> Tensor:
    """Draws ``[n_noises, N, layout.dim]`` from a latent policy that writes ``action``, at observations ``[N]``."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), set_exploration_type(ExplorationType.RANDOM):
        torch.manual_seed(seed)
        return torch.stack([policy(observations.copy())["action"] for _ in range(n_noises)])
