"""``Q^A``: the value of an executed action chunk, learned by soft TD from any data (SPEC §3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule, ValueEstimators
from torchrl.objectives.utils import dispatch_value_estimator

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.objectives.ensemble import check_backup, ensemble_values, reduce_ensemble
from dsrl_torchrl.objectives.latent_distribution import latent_distribution


class ActionValueLoss(LossModule):
    """Soft TD of an ensemble ``Q^A_i(s, a)`` over action chunks; the policy that acts lives in noise space.

    ``y = R + γ^k (1 - terminated) (min_i Q^A_targ,i(s', decode(s', w')) - α log π(w' | s'))``, ``w' ~ π^W(· | s')``,
    and the loss is ``Σ_i mean (Q^A_i(s, a) - y)²``. No noise of the data is read, so demonstrations, base-policy
    rollouts and online data are alike. DSRL-NA, Wagenmaker et al. 2025; SPEC §3.

    Reads ``observation``, ``("next", "executed_chunk")`` and the entries of a macro transition under ``"next"``
    (:data:`~dsrl_torchrl.data.macro_transitions.MACRO_TRANSITION_KEYS`); also the chunk of ``w'`` and ``log π(w' | s')``
    where :meth:`draw_next_chunks` has put them, otherwise both are drawn here. Returns ``loss_action_value`` and,
    detached, ``td_error`` (largest over the ensemble, ``[*B]``), ``q_action`` (``[N, *B]``) and ``value_target``
    (``[*B]``).

    Args:
        actor_network: ``π^W``, a policy over noise with ``rsample_and_log_prob``. No gradient reaches it.
        action_value_network: one member; its in keys are the observation and the chunk, in this order.
        decode: the frozen policy, ``(observation [*B, obs], noise [*B, latent_dim])`` to the executed head
            ``[*B, act_horizon, action_dim]``, e.g. ``LatentActionEnv.decoder.decode``. No gradient reaches it.
        num_critics: ensemble size N.
        backup: ``min`` or ``mean`` over the target ensemble.
        temperature: α, a number or a function that gives it at every call (the actor loss adapts it).
        reduction: ``none``, ``mean`` or ``sum``.
        deactivate_vmap: loop over the ensemble instead of ``torch.vmap``.
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable tensordict keys.

        Attributes:
            observation: what ``decode`` reads, under ``"next"`` too.
            action: what ``actor_network`` writes: the noise.
            executed_chunk: the commanded chunk whose first ``macro_steps`` actions were executed.
            macro_steps: k, the exponent of the bootstrap discount.
            value: where the target value is put for the TD estimator.
            next_chunk: what ``w' ~ π^W(· | s')`` decodes to, optional.
            next_log_prob: ``log π(w' | s')``, optional.
            reward, done, terminated: under ``"next"``.
        """

        observation: NestedKey = "observation"
        action: NestedKey = "action"
        executed_chunk: NestedKey = ("next", "executed_chunk")
        macro_steps: NestedKey = ("next", "macro_steps")
        value: NestedKey = "state_value"
        next_chunk: NestedKey = ("next", "chunk")
        next_log_prob: NestedKey = ("next", "noise_log_prob")
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    tensor_keys: _AcceptedKeys
    decode: Callable[[Tensor, Tensor], Tensor]
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    out_keys: ClassVar = ["loss_action_value", "td_error", "q_action", "value_target"]  # type: ignore[misc]

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    action_value_network: TensorDictModule
    action_value_network_params: TensorDictParams
    target_action_value_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        action_value_network: TensorDictModule,
        decode: Callable[[Tensor, Tensor], Tensor],
        *,
        num_critics: int = 2,
        backup: str = "min",
        temperature: float | Callable[[], Tensor] = 0.0,
        reduction: str = "mean",
        deactivate_vmap: bool = False,
    ) -> None:
        if num_critics < 1:
            raise UserError(f"num_critics must be at least 1, got {num_critics}")
        self._in_keys: list[NestedKey] | None = None
        super().__init__()
        self.convert_to_functional(actor_network, "actor_network")
        self.convert_to_functional(action_value_network, "action_value_network", num_critics, create_target_params=True)
        self.backup = check_backup(backup)
        # In __dict__, where TorchRL keeps its networks: a module given here must not become a part of the loss.
        self.__dict__["decode"] = decode
        self.temperature = temperature
        self.reduction = reduction
        self.deactivate_vmap = deactivate_vmap

    def make_value_estimator(self, value_type: ValueEstimators | None = None, **hyperparams):
        """TD(0) with ``γ^k``; pass ``gamma``, per primitive step."""
        value_type, hyperparams = self._prepare_value_estimator_kwargs(value_type, **hyperparams)
        if value_type is None:
            return self
        dispatch_value_estimator(
            self,
            value_type,
            supported=(ValueEstimators.TD0,),
            tensor_keys={**self._estimator_keys(), "value_target": "value_target"},
            value_network=None,
            deactivate_vmap=self.deactivate_vmap,
            **hyperparams,
        )
        return self

    def _estimator_keys(self) -> dict[str, NestedKey]:
        keys = self.tensor_keys
        return {
            "value": keys.value,
            "reward": keys.reward,
            "done": keys.done,
            "terminated": keys.terminated,
            "steps_to_next_obs": keys.macro_steps,
        }

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._estimator_keys())
        self._in_keys = None

    @property
    def in_keys(self) -> list[NestedKey]:
        """Everything that :meth:`forward` reads."""
        if self._in_keys is None:
            keys = self.tensor_keys
            self._in_keys = [
                keys.observation,
                keys.executed_chunk,
                keys.macro_steps,
                *[("next", key) for key in (keys.observation, keys.reward, keys.done, keys.terminated)],
                *[("next", key) for key in self.actor_network.in_keys if key != keys.observation],
            ]
        return self._in_keys

    @in_keys.setter
    def in_keys(self, keys: list[NestedKey]) -> None:
        self._in_keys = keys

    def action_values(self, observation: Tensor, chunk: Tensor, *, target: bool = False) -> Tensor:
        """``Q^A_i(s, a)``: ``[*B, obs]``, ``[*B, act_horizon, action_dim]`` -> ``[N, *B]``, with gradients."""
        params = self.target_action_value_network_params if target else self.action_value_network_params
        return ensemble_values(
            self.action_value_network, params, observation, chunk, deactivate_vmap=self.deactivate_vmap
        )

    @torch.no_grad()
    def draw_next_chunks(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Draws ``w' ~ π^W(· | s')`` for a batch ``[*B]`` and keeps its chunk and log-density there, in place.

        For the batches of several updates at once: the frozen policy then decodes once for all of them, with the
        latent policy as it is now.
        """
        following = tensordict.get("next")
        dist = latent_distribution(self.actor_network, self.actor_network_params, following)
        # The very Gaussian value that was drawn is scored: inverting the tanh of a saturated noise is not exact.
        noise, log_prob = dist.rsample_and_log_prob()  # (*B, latent_dim), (*B,)
        chunk = self.decode(following.get(self.tensor_keys.observation), noise)
        return tensordict.set(self.tensor_keys.next_chunk, chunk).set(self.tensor_keys.next_log_prob, log_prob)

    @torch.no_grad()
    def value_target(self, tensordict: TensorDictBase) -> Tensor:
        """``y = R + γ^k (1 - terminated) (min_i Q^A_targ,i(s', decode(s', w')) - α log π(w' | s'))``, ``[*B]``."""
        tensordict = tensordict.copy()
        if tensordict.get(self.tensor_keys.next_chunk, None) is None:
            tensordict = self.draw_next_chunks(tensordict)
        following = tensordict.get("next")
        chunk = tensordict.get(self.tensor_keys.next_chunk)
        values = self.action_values(following.get(self.tensor_keys.observation), chunk, target=True)
        alpha = self.temperature() if callable(self.temperature) else self.temperature
        value = reduce_ensemble(values, self.backup) - alpha * tensordict.get(self.tensor_keys.next_log_prob)
        following.set(self.tensor_keys.value, value.unsqueeze(-1))
        return self.value_estimator.value_estimate(tensordict).squeeze(-1)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """``Σ_i mean (Q^A_i(s, a) - y)²`` on a batch ``[*B]`` of macro transitions."""
        target = self.value_target(tensordict)
        chunk = tensordict.get(self.tensor_keys.executed_chunk)
        q = self.action_values(tensordict.get(self.tensor_keys.observation), chunk)  # (N, *B)
        error = q - target
        return TensorDict(
            {
                "loss_action_value": self._reduce_loss(error.square().sum(0), tensordict),
                "td_error": error.detach().abs().max(0)[0],
                "q_action": q.detach(),
                "value_target": target,
            }
        )
