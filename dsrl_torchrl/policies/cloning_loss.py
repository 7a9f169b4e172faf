"""Behaviour cloning of expert chunks: what the flow and the diffusion loss share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torchrl.objectives import LossModule

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.generative import GenerativePolicy

REDUCTIONS = ("none", "mean", "sum")


class BehaviourCloningLoss(LossModule):
    """Mean over actions of the policy's :meth:`~dsrl_torchrl.policies.generative.GenerativePolicy.squared_error`.

    Reads ``observation`` ``[*B, observation_dim]``, the policy's images and ``action`` ``[*B, pred_horizon,
    action_dim]`` (the expert chunk), all in env units, and, where the entry exists, ``valid`` (bool
    ``[*B, pred_horizon]``; False leaves the padded actions at an episode's end out of the loss). Returns one entry,
    ``loss_key``: a scalar, or ``[*B, pred_horizon]`` with ``reduction="none"``.

    Make the loss after moving the policy to its device: it shares the policy's parameters and buffers.

    Args:
        policy: not frozen; its parameters are the loss's parameters.
        reduction: ``none``, ``mean`` or ``sum``.

    Raises:
        UserError: a policy of another class, a frozen policy, an unknown reduction, or a chunk of the wrong shape.
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable tensordict keys.

        Attributes:
            observation: the flat entry that the policy reads, its ``in_keys[0]``.
            action: the expert chunk, ``"action"`` by default.
            valid: mask of the chunk's real actions, ``"valid"`` by default; may be absent from the data.
        """

        observation: NestedKey = "observation"
        action: NestedKey = "action"
        valid: NestedKey = "valid"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    policy: GenerativePolicy
    policy_params: TensorDictParams
    target_policy_params: TensorDictParams

    loss_key: ClassVar[str]
    policy_class: ClassVar[type[GenerativePolicy]]

    def __init__(self, policy: GenerativePolicy, *, reduction: str = "mean") -> None:
        if not isinstance(policy, self.policy_class):
            raise UserError(f"{type(self).__name__} trains a {self.policy_class.__name__}, got {type(policy).__name__}")
        if policy.frozen:
            raise UserError(f"{type(self).__name__} cannot train a frozen policy: build a new one")
        if reduction not in REDUCTIONS:
            raise UserError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        super().__init__()
        self.convert_to_functional(policy, "policy")
        self.reduction = reduction
        self.out_keys = [self.loss_key]
        self.set_keys(observation=policy.in_keys[0])

    def set_keys(self, **kwargs: NestedKey) -> None:
        """Renames ``observation``, ``action`` or ``valid``."""
        super().set_keys(**kwargs)
        self.in_keys = [self.tensor_keys.observation, *self.policy.in_keys[1:], self.tensor_keys.action]
        self.loss_mask_key = self.tensor_keys.valid

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        pass

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """Draws noise and time for every element and returns ``{loss_key: loss}``."""
        observation, *images, action = (tensordict.get(key) for key in self.in_keys)
        self.policy.check_shapes(observation, images, action, name="action")
        with self.policy_params.to_module(self.policy):
            error = self.policy.squared_error(
                self.policy.features(observation, *images).flatten(0, -2),
                self.policy.normalise_action(action).reshape(-1, *action.shape[-2:]),
            )
        error = error.mean(-1).reshape(action.shape[:-1])  # (*B, pred_horizon)
        return TensorDict({self.loss_key: self._reduce_loss(error, tensordict)})
