"""``Q^A``: the value of an executed action chunk, learned by soft TD from any data (Eq. 12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import ValueEstimators
from torchrl.objectives.value import TD0Estimator

from dsrl_torchrl.networks.critics import Critic, reduce_ensemble
from dsrl_torchrl.objectives.latent_loss import LatentLoss, check_ensemble, check_reduction
from dsrl_torchrl.objectives.macro_discount import MacroDiscountLoss

#: Draws ``w' ~ π^W(· | s')`` at observations ``[*B]``: the noise ``[*B, latent_dim]`` and ``log π(w' | s')`` ``[*B]``.
DrawNoise = Callable[[TensorDictBase], tuple[Tensor, Tensor]]
#: The frozen policy: observations ``[*B]`` and noise ``[*B, latent_dim]`` to the executed head.
Decode = Callable[[TensorDictBase, Tensor], Tensor]


class QActionLoss(MacroDiscountLoss, LatentLoss):
    """Soft TD of an ensemble ``Q^A_i(s, a)`` over action chunks; the policy that acts lives in noise space.

    ``y = R + γ^k (1 - terminated) (min_i Q^A_targ,i(s', decode(s', w')) - α log π(w' | s'))``, ``w' ~ π^W(· | s')``,
    ``min_i`` or the mean, by ``backup``; the loss is ``Σ_i mean (Q^A_i(s, a) - y)²``. No noise of the data is read, so
    demonstrations, base-policy rollouts and online data are alike. DSRL-NA, Wagenmaker et al. 2025; Eq. 12.

    Reads what the critic reads of s and s', what ``draw_noise`` and ``decode`` read of s' (``next_keys``), and the
    macro transition's entries under ``"next"``; also the chunk of ``w'`` and ``log π(w' | s')`` where
    :meth:`draw_next_chunks` has put them, otherwise both are drawn here. Returns ``loss_q_action`` and, detached,
    ``td_error`` (largest over the ensemble, ``[*B]``; a prioritised replay's priority, which the caller puts into the
    batch: the batch is left as it was), ``q_action`` (``[N, *B]``) and ``value_target`` (``[*B]``).

    Args:
        q_action: one member; its last in key is the chunk.
        draw_noise: ``π^W``. No gradient reaches it.
        decode: the frozen policy, e.g. ``LatentActionEnv.decoder.decode``. No gradient reaches it.
        num_critics: ensemble size N.
        backup: ``min`` or ``mean`` over the target ensemble.
        temperature: α, a number or a function that gives it at every call (the actor loss adapts it).
        next_keys: entries that ``draw_noise`` and ``decode`` read.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable tensordict keys.

        Attributes:
            action_chunk: the commanded chunk whose first k actions were executed.
            value: where the target value is put for the TD estimator.
            next_chunk: what ``w' ~ π^W(· | s')`` decodes to, optional.
            next_log_prob: ``log π(w' | s')``, optional.
            reward, done, terminated: under ``"next"``.
            priority_weight: of each transition ``[*B]`` in the loss, optional: a prioritised replay writes it.
        """

        action_chunk: NestedKey = ("next", "action_chunk")
        value: NestedKey = "state_value"
        next_chunk: NestedKey = ("next", "chunk")
        next_log_prob: NestedKey = ("next", "noise_log_prob")
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    draw_noise: DrawNoise
    decode: Decode
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    out_keys: ClassVar = ["loss_q_action", "td_error", "q_action", "value_target"]  # type: ignore[misc]

    q_action: Critic
    q_action_params: TensorDictParams
    target_q_action_params: TensorDictParams

    def __init__(
        self,
        q_action: Critic,
        draw_noise: DrawNoise,
        decode: Decode,
        *,
        num_critics: int,
        backup: str,
        temperature: float | Callable[[], Tensor | float],
        next_keys: Sequence[NestedKey] = ("observation",),
        reduction: str | None = "mean",
    ) -> None:
        check_ensemble(num_critics, backup)
        super().__init__()
        self.convert_to_functional(q_action, "q_action", num_critics, create_target_params=True)
        self.refer(draw_noise=draw_noise, decode=decode)
        self.backup, self.temperature, self.reduction = backup, temperature, check_reduction(reduction)
        self.next_keys = list(next_keys)

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> QActionLoss:
        """TD(0) with ``γ^k``; pass ``gamma``, per primitive step."""
        if value_type not in (None, ValueEstimators.TD0):
            raise NotImplementedError(f"QActionLoss has TD(0) targets alone, not {value_type}")
        super().make_value_estimator(TD0Estimator, value_network=None, **hyperparams)
        self._forward_value_estimator_keys()
        return self

    def reads(self) -> list[NestedKey]:
        keys, observed = self.tensor_keys, self.q_action.observation_keys
        following = [*observed, *self.next_keys, keys.reward, keys.done, keys.terminated]
        nested = [("next", *key) if isinstance(key, tuple) else ("next", key) for key in following]
        return [*observed, keys.action_chunk, *nested]

    def values(self, observations: TensorDictBase, chunk: Tensor) -> Tensor:
        """``Q^A_i(s, a)``: ``[*B]``, ``[*B, act_horizon, action_dim]`` -> ``[N, *B]``, with gradients."""
        return self.q_action.ensemble(self.q_action_params, observations, chunk)

    @torch.no_grad()
    def draw_next_chunks(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Draws ``w' ~ π^W(· | s')`` for a batch ``[*B]`` and keeps its chunk and log-density there, in place.

        For the batches of several updates at once: the frozen policy then decodes once for all of them, with the
        latent policy as it is now.
        """
        following = tensordict.get("next")
        noise, log_prob = self.draw_noise(following)  # (*B, latent_dim), (*B,)
        chunk = self.decode(following, noise)
        return tensordict.set(self.tensor_keys.next_chunk, chunk).set(self.tensor_keys.next_log_prob, log_prob)

    @torch.no_grad()
    def value_target(self, tensordict: TensorDictBase) -> Tensor:
        """``y`` of the class, ``[*B]``: the target ensemble's ``min_i`` or mean, by ``backup``."""
        tensordict = tensordict.copy()
        if tensordict.get(self.tensor_keys.next_chunk, None) is None:
            tensordict = self.draw_next_chunks(tensordict)
        following = tensordict.get("next")
        chunk = tensordict.get(self.tensor_keys.next_chunk)
        values = self.q_action.ensemble(self.target_q_action_params, following, chunk)
        alpha = self.temperature() if callable(self.temperature) else self.temperature
        value = reduce_ensemble(values, self.backup) - alpha * tensordict.get(self.tensor_keys.next_log_prob)
        following.set(self.tensor_keys.value, value.unsqueeze(-1))
        return self.value_estimator.value_estimate(tensordict).squeeze(-1)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """``Σ_i mean (Q^A_i(s, a) - y)²`` on a batch ``[*B]`` of macro transitions."""
        target = self.value_target(tensordict)
        q = self.values(tensordict, tensordict.get(self.tensor_keys.action_chunk))  # (N, *B)
        error = q - target
        return TensorDict(
            {
                "loss_q_action": self._reduce_loss(
                    error.square().sum(0), tensordict, weights=self._maybe_get_priority_weight(tensordict)
                ),
                "td_error": error.detach().abs().max(0)[0],
                "q_action": q.detach(),
                "value_target": target,
            }
        )
