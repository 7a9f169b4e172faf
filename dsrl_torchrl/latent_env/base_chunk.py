"""The base policy's chunk as an entry of the env, drawn once per macro step, and policies that correct it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import TensorSpec, Unbounded
from torchrl.envs.transforms import Transform

from dsrl_torchrl.policies.base_policy import BasePolicy

BASE_CHUNK_KEY = "base_chunk"


class BaseChunk(Transform):
    """Adds ``base_chunk`` ``[*B, act_horizon * action_dim]``: what the base policy would do now, by its own noise.

    In [-1, 1] inside of the base policy's range of actions. It is drawn where the env is, once per observation: what
    corrects it stays a deterministic function of entries and action, though the base policy is none.

    Args:
        policy: frozen.
        act_horizon: executed actions.
    """

    def __init__(self, policy: BasePolicy, act_horizon: int) -> None:
        super().__init__(in_keys=policy.in_keys, out_keys=[BASE_CHUNK_KEY])
        self.act_horizon = act_horizon
        self.__dict__["policy"] = policy  # no submodule, which a TransformedEnv would move to the simulator's device

    @torch.no_grad()
    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        policy, first = self.policy, self.policy.first_action
        observations = next_tensordict.select(*policy.in_keys)
        shape = (*next_tensordict.batch_size, policy.noise_horizon, policy.noise_dim)
        noise = torch.randn(shape, device=policy.device)
        chunk = policy.decode(observations.to(policy.device), noise)[..., first : first + self.act_horizon, :]
        home = observations.get(policy.in_keys[0]).device
        return next_tensordict.set(BASE_CHUNK_KEY, policy.normalise_action(chunk).flatten(-2).to(home))

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        shape = (*observation_spec.shape, self.act_horizon * self.policy.action_dim)
        observation_spec[BASE_CHUNK_KEY] = Unbounded(shape, device=observation_spec.device)
        return observation_spec


class ResidualPolicy(BasePolicy):
    """``a = clip(base chunk + scale · w)`` in the base policy's range: Policy Decorator's bounded residual.

    Yuan et al. 2024 (arXiv 2412.13630), section 4.1, chunk by chunk. The noise is the residual, in ±1 with
    ``action_magnitude=1``; zero is the base policy itself.

    Args:
        base: what :class:`BaseChunk` was made with.
        act_horizon: executed actions.
        scale: of the residual, in half ranges of an action.
    """

    dtype: ClassVar[None] = None  # type: ignore[assignment]  # the base policy has decoded already

    def __init__(self, base: BasePolicy, act_horizon: int, scale: float) -> None:
        super().__init__(
            base.action_dim,
            act_horizon,
            in_keys=[*base.in_keys, BASE_CHUNK_KEY],
            obs_horizon=base.obs_horizon,
            control_mode=base.control_mode,
        )
        self.base, self.scale = base, scale
        self.take_after(base)

    def forward(self, *entries_and_noise: Any) -> Tensor:
        """Reads ``base_chunk`` and the noise ``[*B, act_horizon, action_dim]`` -> the same shape, in env units."""
        *_, chunk, noise = entries_and_noise
        base = chunk.unflatten(-1, noise.shape[-2:])
        # Whatever of the base policy's own lies beyond its range stays where it is.
        low, high = base.clamp(max=-1.0), base.clamp(min=1.0)
        return self.denormalise_action((base + self.scale * noise).clamp(low, high))

    @property
    def features_dim(self) -> int | None:
        size = self.base.features_dim
        return None if size is None else size + self.pred_horizon * self.action_dim

    def features(self, *entries: Any) -> Tensor:
        """The base policy's own, then its chunk."""
        *own, chunk = entries
        return torch.cat([self.base.features(*self.base._cast(*own)).to(chunk.dtype), chunk], -1)

    def from_features(self, features: Tensor, noise: Tensor) -> Tensor:
        return self(features[..., -self.pred_horizon * self.action_dim :], noise)

    def observation_statistics(self, key: NestedKey) -> tuple[Tensor, Tensor] | None:
        if key != BASE_CHUNK_KEY:
            return self.base.observation_statistics(key)
        ones = torch.ones(self.pred_horizon * self.action_dim, device=self.device)
        return torch.zeros_like(ones), ones

    def content_hash(self) -> str | None:
        content = self.base.content_hash()
        return None if content is None else f"{content}-residual-{self.scale}"
