"""Soft actor-critic on the latent action: the critic of DSRL-SAC (Eq. 8), actor and temperature (Eq. 9 and 10)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import functional as F
from torchrl.objectives import SACLoss

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.critics import Critic, reduce_ensemble
from dsrl_torchrl.networks.latent_actor import LatentActor
from dsrl_torchrl.objectives.latent_loss import check_ensemble
from dsrl_torchrl.objectives.macro_discount import MacroDiscountLoss, use_macro_discount
from dsrl_torchrl.options import Options, option

ALPHA_PARAMETERISATIONS = ("log", "softplus")

_sac_alpha = SACLoss._alpha.fget  # by super(), torch.compile finds the property itself and breaks its graph


class SACActorOptions(Options):
    """Hyper-parameters of SAC's actor and temperature, and of what critics make of them."""

    backup: Literal["min", "mean"] = option("min", "over the ensemble, in targets and actor")
    alpha_init: float = option(0.03, "first temperature; with -1/0 rewards 0.1 is an upper bound", gt=0)
    alpha_lr: float = option(3e-4, "Adam's learning rate of the temperature", gt=0)
    alpha_parameterisation: Literal["log", "softplus"] = option("log", "of the temperature")
    fixed_alpha: bool = option(False, "keep alpha_init")
    target_entropy_per_dim: float = option(-0.5, "for noise scaled to [-1, 1]; the official runs use 0")
    target_entropy: float | None = option(None, "of all dimensions at once, in place of target_entropy_per_dim")
    backup_entropy: bool = option(True, "the critics' targets hold the policy's entropy")
    entropy_cap: float | None = option(
        None, "most that -log π of a decision counts there, for noise scaled to [-1, 1]; null: no cap"
    )

    def total_target_entropy(self, latent_dim: int) -> float:
        """Of all ``latent_dim`` dimensions, for noise scaled to [-1, 1]."""
        return latent_dim * self.target_entropy_per_dim if self.target_entropy is None else self.target_entropy


class SACOptions(SACActorOptions):
    """Those, and of critics that SAC's own loss trains."""

    target_subset: int | None = option(
        None, "critics drawn for each target, whose min it takes (REDQ, RLPD: 2); null: all, by backup", ge=1
    )


def capped(log_prob: Tensor, entropy_cap: float | None) -> Tensor:
    """``-min(-log π, entropy_cap)``, any shape: what a decision's ``log π`` counts in the critics' targets (Eq. 8, 12).

    Ours, no paper's: with an entropy bonus without bound, critics value states in which many decisions are left.
    """
    return log_prob if entropy_cap is None else log_prob.clamp(min=-entropy_cap)


class LatentSACLoss(MacroDiscountLoss, SACLoss):
    """TorchRL's :class:`~torchrl.objectives.SACLoss` with the choices that DSRL needs and SACLoss fixes.

    - ``backup``: the ensemble's ``min`` (SACLoss) or ``mean`` in targets and actor;
    - ``alpha_parameterisation``: ``log``, α = exp(x) (SACLoss), or ``softplus``, α = log(1 + exp(x)) (RLinf), where x
      is the parameter ``log_alpha`` of SACLoss in both cases. The temperature loss is ``-x (log π + H)`` for ``log``
      (SACLoss, Stable-Baselines3) and ``-α (log π + H)`` for ``softplus``;
    - ``target_subset``: y takes the minimum of as many critics, drawn anew for each update (REDQ, RLPD);
    - ``backup_entropy``: whether y holds ``- α log π`` (SACLoss) or not (RLinf, dsrl_pi0);
    - ``entropy_cap``: most that ``- log π`` counts in y (:func:`capped`), in ±m; ``None`` (SACLoss): no cap.

    The critic loss is the squared error summed over the ensemble, ``Σ_i mean (Q_i - y)²``, with
    ``y = R + γ^k (1 - terminated) (min_i Q_i^targ(s', w') - α log π(w' | s'))``. The discount comes from
    :func:`~dsrl_torchrl.objectives.macro_discount.use_macro_discount`; without it the loss refuses to run.

    ``log π`` is the density of the noise itself, in ±m with m = ``action_magnitude``. The official runs take that of
    the noise scaled to [-1, 1], which is larger by ``D log m`` (D = ``latent_dim``). So every bootstrap here holds
    ``γ^k (1 - terminated) α D log m`` more than theirs, a bonus for steps that go on; nothing for m = 1. At given
    critics, actor and temperature learn the same: the actor loss differs by a constant, and :func:`make_sac_loss` adds
    ``D log m`` to the target entropy.
    """

    def __init__(
        self,
        *args,
        backup: str = "min",
        alpha_parameterisation: str = "log",
        backup_entropy: bool = True,
        target_subset: int | None = None,
        entropy_cap: float | None = None,
        **kwargs,
    ) -> None:
        check_ensemble(1, backup)
        if alpha_parameterisation not in ALPHA_PARAMETERISATIONS:
            raise UserError(
                f"alpha_parameterisation must be one of {', '.join(ALPHA_PARAMETERISATIONS)}; "
                f"got {alpha_parameterisation!r}"
            )
        super().__init__(*args, **kwargs)
        self.backup, self.backup_entropy, self.entropy_cap = backup, backup_entropy, entropy_cap
        self.target_subset = target_subset
        self.alpha_parameterisation = alpha_parameterisation
        if alpha_parameterisation == "softplus":
            self.log_alpha.data.copy_(torch.log(torch.expm1(self.alpha_init)))

    @property
    def _alpha(self) -> Tensor:
        if self.alpha_parameterisation == "softplus":
            return F.softplus(self.log_alpha).detach()
        return _sac_alpha(self)

    def _alpha_loss(self, log_prob: Tensor) -> Tensor:
        if self.alpha_parameterisation == "softplus":
            return -F.softplus(self.log_alpha) * (log_prob + self.target_entropy)
        return super()._alpha_loss(log_prob)

    actor_network: LatentActor
    qvalue_network: Critic

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``E[α log π(w | s) - min_i Q_i(s, w)]``, ``w ~ π`` reparameterised; no gradient reaches the critics."""
        action, log_prob = self.draw_noise(tensordict)
        q = self.qvalue_network.ensemble(self._cached_detached_qvalue_params, tensordict, action)
        q = reduce_ensemble(q, self.backup)
        loss = self._reduce_loss(
            self._alpha * log_prob - q, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict)
        )
        return loss, {"log_prob": log_prob.detach(), "q": q.detach()}

    @torch.no_grad()
    def _compute_target_v2(self, tensordict: TensorDictBase) -> Tensor:
        """``y = R + γ^k (1 - terminated) (min_i Q_i^targ(s', w') - α log π(w' | s'))``, ``[*B]``; see the class."""
        following = tensordict.get("next")
        action, log_prob = self.draw_noise(following)
        q = self.qvalue_network.ensemble(self.target_qvalue_network_params, following, action)
        if self.target_subset is None:
            q = reduce_ensemble(q, self.backup)  # (*B,)
        else:  # as CUDA graphs can draw it
            q = q[torch.rand(len(q), device=q.device).topk(self.target_subset).indices].min(0)[0]
        value = q - self._alpha * capped(log_prob, self.entropy_cap) if self.backup_entropy else q
        return self.value_estimator.value_estimate(tensordict, next_value=value.unsqueeze(-1)).squeeze(-1)

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``Σ_i mean (Q_i(s, w) - y)²``; the metadata carries the values that a run must log."""
        target = self._compute_target_v2(tensordict)
        action = tensordict.get(self.tensor_keys.action)
        q = self.values(tensordict, action)  # (N, *B)
        error = q - target
        loss = self._reduce_loss(
            error.square().sum(0), tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict)
        )
        return loss, {"td_error": error.detach().abs().max(0)[0], "q": q.detach(), "target": target}

    def draw_noise(self, observations: TensorDictBase) -> tuple[Tensor, Tensor]:
        """``w ~ π(· | s)`` ``[*B, latent_dim]``, reparameterised, and ``log π(w | s)`` ``[*B]``."""
        with self.actor_network_params.to_module(self.actor_network):
            return self.actor_network.draw(observations)

    def values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        """``Q^W_i(s, w)``: ``[*B]``, ``[*B, latent_dim]`` -> ``[N, *B]``, with gradients."""
        return self.qvalue_network.ensemble(self.qvalue_network_params, observations, noise)


def make_sac_loss(
    actor: LatentActor,
    q_noise: Critic,
    options: SACActorOptions,
    *,
    latent_dim: int,
    action_magnitude: float,
    gamma: float,
    num_critics: int,
    delay_qvalue: bool = True,
) -> LatentSACLoss:
    """Builds the loss on macro transitions.

    Args:
        actor, q_noise: see :mod:`dsrl_torchrl.networks`.
        options: ensemble's backup and temperature. The loss works in ±action_magnitude, where entropy is larger than
            for noise scaled to [-1, 1] by ``latent_dim * log(action_magnitude)``: added to the target and to the cap.
        latent_dim: size of the noise.
        action_magnitude: bound of the noise.
        gamma: discount per primitive step; the bootstrap uses ``γ^k`` with k from ``("next", "chunk_steps")``.
        num_critics: ensemble size N.
        delay_qvalue: keep target copies of the critics; DSRL-NA's ``Q^W`` is distilled and needs none.
    """
    check_ensemble(num_critics)
    subset = options.target_subset if isinstance(options, SACOptions) else None
    if subset is not None and subset > num_critics:
        raise UserError(f"target_subset ({subset}) must be at most num_critics ({num_critics})")
    shift, cap = latent_dim * math.log(action_magnitude), options.entropy_cap
    loss = LatentSACLoss(
        actor,
        q_noise,
        num_qvalue_nets=num_critics,
        loss_function="l2",
        alpha_init=options.alpha_init,
        fixed_alpha=options.fixed_alpha,
        target_entropy=options.total_target_entropy(latent_dim) + shift,
        backup=options.backup,
        backup_entropy=options.backup_entropy,
        target_subset=subset,
        entropy_cap=None if cap is None else cap + shift,
        alpha_parameterisation=options.alpha_parameterisation,
        separate_losses=False,
        delay_qvalue=delay_qvalue,
    )
    _ = loss.target_entropy  # SACLoss makes this buffer at its first use, and a checkpoint from before would miss it
    return use_macro_discount(loss, gamma)
