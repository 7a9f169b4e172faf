"""The frozen base policy as an inverse env transform: noise in, action chunk out."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import Bounded, TensorSpec
from torchrl.envs.transforms import Transform

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.noise_layout import NoiseLayout
from dsrl_torchrl.policies.base_policy import BasePolicy


class NoiseDecoder(Transform):
    """Turns the latent action ``w`` into the executed head of ``decode(s, w)``.

    Args:
        base_policy: frozen; reads its :attr:`~dsrl_torchrl.policies.base_policy.BasePolicy.in_keys`.
        act_horizon: number of actions of the chunk that the env executes, from the policy's ``first_action`` on.
        noise_layout: one of :data:`~dsrl_torchrl.latent_env.noise_layout.NOISE_LAYOUTS`.
        action_magnitude: bound of the action spec, ``|w_i| <= action_magnitude``, in standard deviations of the
            prior. The official runs use 1.0 to 2.5. Noise beyond the bound is decoded as it is: the prior
            ``N(0, I)`` of the base policy itself has no bound.
        action_key: the latent action ``[*B, layout.dim]``, replaced by ``[*B, act_horizon, action_dim]``.

    Raises:
        UserError: an unknown layout, a non-positive ``action_magnitude``, or a head that ends beyond the chunk.
    """

    def __init__(
        self,
        base_policy: BasePolicy,
        *,
        act_horizon: int,
        noise_layout: str = "full",
        action_magnitude: float = 1.5,
        action_key: NestedKey = "action",
    ) -> None:
        if not action_magnitude > 0:
            raise UserError(f"action_magnitude must be positive, got {action_magnitude}")
        executable = base_policy.pred_horizon - base_policy.first_action
        if not 1 <= act_horizon <= executable:
            raise UserError(
                f"act_horizon must lie between 1 and {executable} (the base policy's pred_horizon "
                f"{base_policy.pred_horizon}, from its action {base_policy.first_action} on); got {act_horizon}"
            )
        super().__init__(in_keys_inv=[action_key], out_keys_inv=[action_key])
        self.layout = NoiseLayout(
            noise_layout, base_policy.noise_horizon, base_policy.noise_dim, act_horizon, base_policy.first_action
        )
        self.base_policy = base_policy
        self.act_horizon = act_horizon
        self.action_magnitude = float(action_magnitude)
        self.action_key = action_key

    @property
    def observation_keys(self) -> list[NestedKey]:
        """The entries that the base policy reads."""
        return self.base_policy.in_keys

    @property
    def latent_dim(self) -> int:
        """Size of the latent action."""
        return self.layout.dim

    @property
    def device(self) -> torch.device:
        """Where chunks are decoded."""
        return self.base_policy.device

    def decode(self, observations: TensorDictBase, latent_action: torch.Tensor, *, full: bool = False) -> torch.Tensor:
        """Observations ``[*B]``, ``[*B, layout.dim]`` -> the executed head ``[*B, act_horizon, action_dim]``.

        ``full=True`` returns the whole sequence ``[*B, pred_horizon, action_dim]``. Deterministic in both arguments,
        differentiable in ``latent_action`` when that requires grad and the base policy is differentiable.
        """
        entries = [observations.get(key) for key in self.base_policy.in_keys]
        chunk = self.base_policy(*entries, self.layout.to_chunk_noise(latent_action))
        first = self.base_policy.first_action
        return chunk if full else chunk[..., first : first + self.act_horizon, :]

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        latent_action = tensordict.get(self.action_key)
        with torch.no_grad():
            head = self.decode(tensordict, latent_action)
        return tensordict.set(self.action_key, head.to(latent_action.dtype))

    def transform_input_spec(self, input_spec: TensorSpec) -> TensorSpec:
        full_action_spec = input_spec["full_action_spec"]
        spec = full_action_spec[self.action_key]  # (*B, act_horizon, action_dim)
        full_action_spec[self.action_key] = Bounded(
            -self.action_magnitude,
            self.action_magnitude,
            shape=(*spec.shape[:-2], self.layout.dim),
            dtype=spec.dtype,
            device=spec.device,
        )
        return input_spec
