"""AW-MLE: the latent policy imitates the prior's better noises (Eq. 14 and 15)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.critics import reduce_ensemble
from dsrl_torchrl.objectives.latent_loss import LatentLoss, check_ensemble, check_reduction, with_batch_of


def truncated_prior(*shape: int, bound: float, like: Tensor) -> Tensor:
    """``N(0, 1)`` conditioned on ``|w| < bound``, by inversion of its distribution function.

    Candidates lie inside the latent policy's box: clamped ones would pile up on its faces, where its density diverges.
    """
    edge = math.erf(bound / math.sqrt(2))
    uniform = torch.rand(*shape, dtype=like.dtype, device=like.device)
    return math.sqrt(2) * torch.erfinv(edge * (2 * uniform - 1)).clamp(-4.0, 4.0)


class AdvantageWeightedMLELoss(LatentLoss):
    """``-Σ_i ω_i log π(w_i | s)`` over M candidates ``w_i`` of the prior, weighted by their advantage under ``Q^W``.

    ``ω_i = exp(β (Q(s, w_i) - V(s))) / M`` with the soft baseline ``V(s) = τ log mean_i exp(Q(s, w_i) / τ)`` and
    ``Q = min_i Q^W_i`` (or the mean, by ``backup``). ``V`` runs from the mean (τ → ∞, advantage-weighted regression,
    Peng et al. 2019) to the best candidate (τ → 0); with ``β = 1 / τ`` the weights of a state are the softmax of
    ``Q / τ``. The exponent is at most ``β τ log M``, so no weight exceeds ``M^(β τ) / M``.

    The policy stays where the prior has mass, which guards against the critic's over-estimation elsewhere.

    Reads what the actor reads. Returns ``loss_aw_mle`` and, detached, ``effective_candidates`` (``[*B]``,
    ``(Σ ω)² / Σ ω²``: M for equal weights, 1 if one candidate takes all) and ``advantage`` (``[*B]``, the weighted
    mean of ``Q`` over the plain one).

    Args:
        actor: ``π^W``, trained.
        noise_values: ``Q^W``, ``(observations [*B], noise [M, *B, latent_dim]) -> [N, M, *B]``; no gradient reaches it.
        latent_dim: size of the noise.
        action_magnitude: bound of the noise; candidates are drawn from the prior inside it.
        m_candidates: M (the seeds have 16 to 64).
        beta_latent: β, inverse temperature in units of the return.
        tau_baseline: τ, in units of the return.
        backup: ``min`` or ``mean`` over the ensemble.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    noise_values: Callable[[TensorDictBase, Tensor], Tensor]
    out_keys: ClassVar = ["loss_aw_mle", "effective_candidates", "advantage"]  # type: ignore[misc]

    actor: ProbabilisticTensorDictSequential
    actor_params: TensorDictParams
    target_actor_params: TensorDictParams  # TorchRL makes them in any case, and warns of names without annotation

    def __init__(
        self,
        actor: ProbabilisticTensorDictSequential,
        noise_values: Callable[[TensorDictBase, Tensor], Tensor],
        *,
        latent_dim: int,
        action_magnitude: float,
        m_candidates: int,
        beta_latent: float,
        tau_baseline: float,
        backup: str,
        reduction: str | None = "mean",
    ) -> None:
        if m_candidates < 2:
            raise UserError(f"m_candidates must be at least 2, got {m_candidates}")
        for name, value in (("beta_latent", beta_latent), ("tau_baseline", tau_baseline)):
            if not value > 0:
                raise UserError(f"{name} must be positive, got {value}")
        check_ensemble(1, backup)
        super().__init__()
        self.convert_to_functional(actor, "actor")
        self.refer(noise_values=noise_values)
        self.latent_dim, self.action_magnitude, self.m_candidates = latent_dim, action_magnitude, m_candidates
        self.beta_latent, self.tau_baseline = beta_latent, tau_baseline
        self.backup, self.reduction = backup, check_reduction(reduction)

    def reads(self) -> list[NestedKey]:
        return list(self.actor.in_keys)

    def weights(self, q: Tensor) -> Tensor:
        """``Q(s, w_i)`` ``[M, *B]`` -> ``ω_i`` ``[M, *B]``."""
        log_m = math.log(len(q))
        baseline = self.tau_baseline * (torch.logsumexp(q / self.tau_baseline, 0) - log_m)
        return torch.exp(self.beta_latent * (q - baseline) - log_m)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Draws the candidates from the global generator; batch ``[*B]``."""
        like = tensordict.get(self.actor.in_keys[0])
        tensordict = with_batch_of(tensordict, like)
        shape = (self.m_candidates, *tensordict.batch_size, self.latent_dim)
        noise = truncated_prior(*shape, bound=self.action_magnitude, like=like)
        with torch.no_grad():
            q = reduce_ensemble(self.noise_values(tensordict, noise), self.backup)  # (M, *B)
            omega = self.weights(q)
        with self.actor_params.to_module(self.actor):
            loss = -(omega * self.actor.get_dist(tensordict).log_prob(noise)).sum(0)
        return TensorDict(
            {
                "loss_aw_mle": self._reduce_loss(loss, tensordict),
                "effective_candidates": omega.sum(0).square() / omega.square().sum(0),
                "advantage": (omega * q).sum(0) / omega.sum(0) - q.mean(0),
            }
        )
