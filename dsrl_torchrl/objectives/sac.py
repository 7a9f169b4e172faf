"""DSRL-SAC: soft actor-critic on the latent action (SPEC §2)."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torch.nn import functional as F
from torchrl.objectives import SACLoss, ValueEstimators

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.objectives.ensemble import check_backup, ensemble_values, reduce_ensemble, takes_candidates
from dsrl_torchrl.objectives.latent_distribution import latent_distribution

ALPHA_PARAMETERISATIONS = ("log", "softplus")


class LatentSACLoss(SACLoss):
    """TorchRL's :class:`~torchrl.objectives.SACLoss` with the two choices that DSRL needs and SACLoss fixes.

    - ``backup``: the ensemble's ``min`` (SACLoss) or ``mean`` in targets and actor;
    - ``alpha_parameterisation``: ``log``, α = exp(x) (SACLoss), or ``softplus``, α = log(1 + exp(x)) (RLinf), where x
      is the parameter ``log_alpha`` of SACLoss in both cases. The temperature loss is ``-x (log π + H)`` for ``log``
      (SACLoss, Stable-Baselines3) and ``-α (log π + H)`` for ``softplus``.

    The critic loss is the squared error summed over the ensemble, ``Σ_i mean (Q_i - y)²``, with
    ``y = R + γ^k (1 - terminated) (min_i Q_i^targ(s', w') - α log π(w' | s'))``.
    """

    def __init__(self, *args, backup: str = "min", alpha_parameterisation: str = "log", **kwargs) -> None:
        check_backup(backup)
        if alpha_parameterisation not in ALPHA_PARAMETERISATIONS:
            raise UserError(
                f"alpha_parameterisation must be one of {', '.join(ALPHA_PARAMETERISATIONS)}; "
                f"got {alpha_parameterisation!r}"
            )
        super().__init__(*args, **kwargs)
        self.backup = backup
        self.alpha_parameterisation = alpha_parameterisation
        if alpha_parameterisation == "softplus":
            self.log_alpha.data.copy_(torch.log(torch.expm1(self.alpha_init)))

    @property
    def _alpha(self) -> Tensor:
        if self.alpha_parameterisation == "softplus":
            return F.softplus(self.log_alpha).detach()
        return super()._alpha

    def _alpha_loss(self, log_prob: Tensor) -> Tensor:
        if self.alpha_parameterisation == "softplus":
            return -F.softplus(self.log_alpha) * (log_prob + self.target_entropy)
        return super()._alpha_loss(log_prob)

    # Actor and target score the very Gaussian value that was drawn (``rsample_and_log_prob``): inverting the tanh of a
    # saturated noise gives entropies of 1e5 and, through them, diverging critics.

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``E[α log π(w | s) - min_i Q_i(s, w)]``, ``w ~ π`` reparameterised; no gradient reaches the critics."""
        dist = latent_distribution(self.actor_network, self.actor_network_params, tensordict)
        action, log_prob = dist.rsample_and_log_prob()  # (*B, latent_dim), (*B,)
        q = reduce_ensemble(self._ensemble(tensordict, action, self._cached_detached_qvalue_params), self.backup)
        loss = self._reduce_loss(
            self._alpha * log_prob - q, tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict)
        )
        return loss, {"log_prob": log_prob.detach(), "q": q.detach()}

    @torch.no_grad()
    def _compute_target_v2(self, tensordict: TensorDictBase) -> Tensor:
        """``y = R + γ^k (1 - terminated) (min_i Q_i^targ(s', w') - α log π(w' | s'))``, ``[*B]``."""
        tensordict = tensordict.copy()
        following = tensordict.get("next")
        dist = latent_distribution(self.actor_network, self.actor_network_params, following)
        action, log_prob = dist.rsample_and_log_prob()
        q = reduce_ensemble(self._ensemble(following, action, self.target_qvalue_network_params), self.backup)  # (*B,)
        value = (q - self._alpha * log_prob).unsqueeze(-1)
        tensordict.set(("next", self.value_estimator.tensor_keys.value), value)
        return self.value_estimator.value_estimate(tensordict).squeeze(-1)

    def qvalue_v2_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``Σ_i mean (Q_i(s, w) - y)²``; the metadata carries the values that a run must log."""
        target = self._compute_target_v2(tensordict)
        action = tensordict.get(self.tensor_keys.action)
        q = self._ensemble(tensordict, action, self.qvalue_network_params)  # (N, *B)
        error = q - target
        loss = self._reduce_loss(
            error.square().sum(0), tensordict=tensordict, weights=self._maybe_get_priority_weight(tensordict)
        )
        return loss, {"td_error": error.detach().abs().max(0)[0], "q": q.detach(), "target": target}

    def noise_values(self, observation: Tensor, noise: Tensor) -> Tensor:
        """``Q^W_i(s, w)``: ``[*B, obs]``, ``[*B, latent_dim]`` -> ``[N, *B]``, with gradients.

        With M candidates for every observation, ``[*B, obs]``, ``[M, *B, latent_dim]`` -> ``[N, M, *B]``.
        """
        if not takes_candidates(self.qvalue_network, self.deactivate_vmap):
            observation = observation.expand(*noise.shape[:-1], -1)
        return ensemble_values(
            self.qvalue_network, self.qvalue_network_params, observation, noise, deactivate_vmap=self.deactivate_vmap
        )

    def _ensemble(self, tensordict: TensorDictBase, action: Tensor, params: TensorDictParams) -> Tensor:
        """``Q^W_i(s, w)`` ``[N, *B]`` with ``params``; whatever the network reads beside ``w`` comes from the batch."""
        inputs = [
            action if key == self.tensor_keys.action else tensordict.get(key) for key in self.qvalue_network.in_keys
        ]
        return ensemble_values(self.qvalue_network, params, *inputs, deactivate_vmap=self.deactivate_vmap)


def make_sac_loss(
    actor: ProbabilisticTensorDictSequential,
    critic: TensorDictModule,
    *,
    latent_dim: int,
    action_magnitude: float,
    gamma: float = 0.99,
    num_critics: int = 2,
    backup: str = "min",
    alpha_init: float = 0.01,
    alpha_parameterisation: str = "log",
    fixed_alpha: bool = False,
    target_entropy_per_dim: float = -0.5,
    delay_qvalue: bool = True,
) -> LatentSACLoss:
    """Builds the loss of DSRL-SAC on macro transitions.

    Args:
        actor, critic: see :mod:`dsrl_torchrl.modules`.
        latent_dim: size of the noise.
        action_magnitude: bound of the noise.
        gamma: discount per primitive step; the bootstrap uses ``γ^k`` with k from ``("next", "macro_steps")``.
        num_critics: ensemble size N.
        backup: ``min`` or ``mean`` over the ensemble.
        alpha_init: first temperature. With -1/0 rewards 0.1 is an upper bound: at 1 the entropy swamps the reward.
        alpha_parameterisation: ``log`` or ``softplus``.
        fixed_alpha: keep ``alpha_init``.
        target_entropy_per_dim: target entropy divided by ``latent_dim``, for noise scaled to [-1, 1] (the convention of
            the official runs, which use 0). The loss works in ±action_magnitude, where entropy is larger by
            ``latent_dim * log(action_magnitude)``; this function adds that.
        delay_qvalue: keep target copies of the critics; DSRL-NA's ``Q^W`` is distilled and needs none.
    """
    if num_critics < 1:
        raise UserError(f"num_critics must be at least 1, got {num_critics}")
    if not alpha_init > 0:
        raise UserError(f"alpha_init must be positive, got {alpha_init}")
    loss = LatentSACLoss(
        actor,
        critic,
        num_qvalue_nets=num_critics,
        loss_function="l2",
        alpha_init=alpha_init,
        fixed_alpha=fixed_alpha,
        target_entropy=latent_dim * (target_entropy_per_dim + math.log(action_magnitude)),
        backup=backup,
        alpha_parameterisation=alpha_parameterisation,
        separate_losses=False,
        delay_qvalue=delay_qvalue,
    )
    _ = loss.target_entropy  # SACLoss makes this buffer at its first use, and a checkpoint from before would miss it
    loss.make_value_estimator(ValueEstimators.TD0, gamma=gamma)
    # The nested key: an entry at the root would hold the previous macro step's k.
    loss.value_estimator.set_keys(steps_to_next_obs=("next", "macro_steps"))
    return loss
