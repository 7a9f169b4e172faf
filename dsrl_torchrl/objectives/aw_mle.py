"""AW-MLE: the latent policy imitates the prior's better noises (SPEC §4, S1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.objectives.ensemble import check_backup, reduce_ensemble
from dsrl_torchrl.objectives.latent_distribution import latent_distribution


def truncated_prior(*shape: int, bound: float, like: Tensor) -> Tensor:
    """``N(0, 1)`` conditioned on ``|w| < bound``, by inversion of its distribution function.

    Candidates lie inside the latent policy's box: clamped ones would pile up on its faces, where its density diverges.
    """
    edge = math.erf(bound / math.sqrt(2))
    uniform = torch.rand(*shape, dtype=like.dtype, device=like.device)
    return math.sqrt(2) * torch.erfinv(edge * (2 * uniform - 1)).clamp(-4.0, 4.0)


class AdvantageWeightedMLELoss(LossModule):
    """``-Σ_i ω_i log π(w_i | s)`` over M candidates ``w_i`` of the prior, weighted by their advantage under ``Q^W``.

    ``ω_i = exp(β (Q(s, w_i) - V(s))) / M`` with the soft baseline ``V(s) = τ log mean_i exp(Q(s, w_i) / τ)`` and
    ``Q = min_i Q^W_i``. ``V`` runs from the mean (τ → ∞, advantage-weighted regression, Peng et al. 2019) to the best
    candidate (τ → 0); with ``β = 1 / τ`` the weights of a state are the softmax of ``Q / τ``. The exponent is at most
    ``β τ log M``, so no weight exceeds ``M^(β τ) / M``.

    The policy stays where the prior has mass, which guards against the critic's over-estimation elsewhere.

    Reads ``observation`` alone. Returns ``loss_aw_mle`` and, detached, ``effective_candidates`` (``[*B]``,
    ``(Σ ω)² / Σ ω²``: M for equal weights, 1 if one candidate takes all) and ``advantage`` (``[*B]``, the weighted
    mean of ``Q`` over the plain one).

    Args:
        actor_network: ``π^W``, trained.
        noise_values: ``Q^W``, ``(observation [*B, obs], noise [M, *B, latent_dim]) -> [N, M, *B]``; no gradient reaches
            it.
        latent_dim: size of the noise.
        action_magnitude: bound of the noise; candidates are drawn from the prior inside it.
        m_candidates: M (SPEC: 16 to 64).
        beta_latent: β, inverse temperature in units of the return (SPEC: 0.3 to 1).
        tau_baseline: τ, in units of the return.
        backup: ``min`` or ``mean`` over the ensemble.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable tensordict keys.

        Attributes:
            observation: what the critic reads.
            action: what ``actor_network`` writes: the noise.
        """

        observation: NestedKey = "observation"
        action: NestedKey = "action"

    tensor_keys: _AcceptedKeys
    noise_values: Callable[[Tensor, Tensor], Tensor]
    default_keys = _AcceptedKeys
    out_keys: ClassVar = ["loss_aw_mle", "effective_candidates", "advantage"]  # type: ignore[misc]

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        noise_values: Callable[[Tensor, Tensor], Tensor],
        *,
        latent_dim: int,
        action_magnitude: float,
        m_candidates: int = 32,
        beta_latent: float = 1.0,
        tau_baseline: float = 1.0,
        backup: str = "min",
        reduction: str = "mean",
    ) -> None:
        if m_candidates < 2:
            raise UserError(f"m_candidates must be at least 2, got {m_candidates}")
        for name, value in (("beta_latent", beta_latent), ("tau_baseline", tau_baseline)):
            if not value > 0:
                raise UserError(f"{name} must be positive, got {value}")
        super().__init__()
        self.convert_to_functional(actor_network, "actor_network")
        # In __dict__, where TorchRL keeps its networks: a module given here must not become a part of the loss.
        self.__dict__["noise_values"] = noise_values
        self.latent_dim = latent_dim
        self.action_magnitude = action_magnitude
        self.m_candidates = m_candidates
        self.beta_latent = beta_latent
        self.tau_baseline = tau_baseline
        self.backup = check_backup(backup)
        self.reduction = reduction
        self.set_keys()

    def set_keys(self, **kwargs: NestedKey) -> None:
        """Renames ``observation`` or ``action``."""
        super().set_keys(**kwargs)
        self.in_keys = list(dict.fromkeys([self.tensor_keys.observation, *self.actor_network.in_keys]))

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        pass

    def weights(self, q: Tensor) -> Tensor:
        """``Q(s, w_i)`` ``[M, *B]`` -> ``ω_i`` ``[M, *B]``."""
        log_m = math.log(len(q))
        baseline = self.tau_baseline * (torch.logsumexp(q / self.tau_baseline, 0) - log_m)
        return torch.exp(self.beta_latent * (q - baseline) - log_m)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Draws the candidates from the global generator; batch ``[*B]``."""
        observation = tensordict.get(self.tensor_keys.observation)  # (*B, obs)
        batch = observation.shape[:-1]
        noise = truncated_prior(
            self.m_candidates, *batch, self.latent_dim, bound=self.action_magnitude, like=observation
        )
        with torch.no_grad():
            q = reduce_ensemble(self.noise_values(observation, noise), self.backup)  # (M, *B)
            omega = self.weights(q)
        dist = latent_distribution(self.actor_network, self.actor_network_params, tensordict)
        loss = -(omega * dist.log_prob(noise)).sum(0)
        return TensorDict(
            {
                "loss_aw_mle": self._reduce_loss(loss, tensordict),
                "effective_candidates": omega.sum(0).square() / omega.square().sum(0),
                "advantage": (omega * q).sum(0) / omega.sum(0) - q.mean(0),
            }
        )
