"""The base policy's own encoder, run once per macro step: what everything else then reads instead of images."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorSpec, Unbounded
from torchrl.envs.transforms import Transform

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.base_policy import BasePolicy

BASE_FEATURES_KEY = "base_features"
#: Transitions that are encoded at once.
ROWS = 1024


class BaseFeatures(Transform):
    """Adds ``base_features`` ``[*B, F]``, what the frozen base policy makes of its entries before it sees noise.

    For latent policy and critics these are a state like any other: standardised, small in a replay buffer, and never
    encoded again, neither for a TD target nor for one of many noises at the same state.

    Args:
        policy: frozen, with :meth:`~dsrl_torchrl.policies.base_policy.BasePolicy.features`.

    Raises:
        UserError: a policy that cannot be taken apart.
    """

    def __init__(self, policy: BasePolicy) -> None:
        if policy.features_dim is None:
            raise UserError(
                f"{type(policy).__name__} has no features to read (it would implement features_dim, features and "
                "from_features): set latent.base_features=false, base_features=False in Python"
            )
        super().__init__(in_keys=policy.in_keys, out_keys=[BASE_FEATURES_KEY])
        self.policy = policy

    @torch.no_grad()
    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict.set(BASE_FEATURES_KEY, self.policy.encode(next_tensordict))

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        shape = (*observation_spec.shape, self.policy.features_dim)
        observation_spec[BASE_FEATURES_KEY] = Unbounded(shape, device=observation_spec.device)
        return observation_spec


class FeaturePolicy(BasePolicy):
    """The rest of the base policy: features and noise to an action chunk.

    Args:
        policy: what :class:`BaseFeatures` was made with.
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__(
            policy.action_dim,
            policy.pred_horizon,
            in_keys=[BASE_FEATURES_KEY],
            noise_horizon=policy.noise_horizon,
            noise_dim=policy.noise_dim,
            first_action=policy.first_action,
            control_mode=policy.control_mode,
        )
        self.policy, self.differentiable = policy, policy.differentiable
        self.take_after(policy)

    @property
    def dtype(self) -> torch.dtype | None:  # type: ignore[override]  # it may be of another rule
        """The policy's."""
        return self.policy.dtype

    def forward(self, features: Tensor, noise: Tensor) -> Tensor:
        """``[*B, F]``, ``[*B, noise_horizon, noise_dim]`` -> ``[*B, pred_horizon, action_dim]``."""
        return self.policy.from_features(features, noise)

    def content_hash(self) -> str | None:
        content = self.policy.content_hash()
        return None if content is None else f"{content}-features"


@torch.no_grad()
def add_base_features(transitions: TensorDictBase, policy: BasePolicy) -> TensorDictBase:
    """Adds ``base_features`` of s and s' to macro transitions ``[n]`` that hold the policy's entries, in place."""
    for observations in (transitions, transitions.get("next")):
        parts = [policy.encode(part.to(policy.device)) for part in observations.select(*policy.in_keys).split(ROWS)]
        observations.set(BASE_FEATURES_KEY, torch.cat(parts).to(transitions.get(policy.in_keys[0]).device))
    return transitions
