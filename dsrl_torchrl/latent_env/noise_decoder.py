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
    """Turns the latent action ``w`` into the executed head of ``decode(s, w)`` (SPEC §1).

    Args:
        base_policy: frozen, ``(observation, noise) -> chunk``.
        act_horizon: number of actions of the chunk that the env executes.
        noise_layout: one of :data:`~dsrl_torchrl.latent_env.noise_layout.NOISE_LAYOUTS`.
        action_magnitude: bound of the action spec, ``|w_i| <= action_magnitude``, in standard deviations of the
            prior. The official runs use 1.0 to 2.5. Noise beyond the bound is decoded as it is: the prior
            ``N(0, I)`` of the base policy itself has no bound.
        observation_key: what the base policy reads, ``[*B, base_policy.observation_dim]``.
        action_key: the latent action ``[*B, layout.dim]``, replaced by ``[*B, act_horizon, action_dim]``.

    Raises:
        UserError: for an unknown layout, a non-positive ``action_magnitude`` or ``act_horizon > pred_horizon``.
    """

    def __init__(
        self,
        base_policy: BasePolicy,
        *,
        act_horizon: int,
        noise_layout: str = "full",
        action_magnitude: float = 1.5,
        observation_key: NestedKey = "observation",
        action_key: NestedKey = "action",
    ) -> None:
        if not action_magnitude > 0:
            raise UserError(f"action_magnitude must be positive, got {action_magnitude}")
        super().__init__(in_keys_inv=[action_key], out_keys_inv=[action_key])
        self.layout = NoiseLayout(noise_layout, base_policy.pred_horizon, act_horizon, base_policy.action_dim)
        self.base_policy = base_policy
        self.action_magnitude = float(action_magnitude)
        self.observation_key = observation_key
        self.action_key = action_key

    def decode(self, observation: torch.Tensor, latent_action: torch.Tensor, *, full: bool = False) -> torch.Tensor:
        """``[*B, obs]``, ``[*B, layout.dim]`` -> the executed head ``[*B, act_horizon, action_dim]``.

        ``full=True`` returns the whole sequence ``[*B, pred_horizon, action_dim]``. Deterministic in both arguments,
        differentiable in ``latent_action`` when that requires grad.
        """
        chunk = self.base_policy(observation, self.layout.to_chunk_noise(latent_action))
        return chunk if full else chunk[..., : self.layout.act_horizon, :]

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        with torch.no_grad():
            head = self.decode(tensordict.get(self.observation_key), tensordict.get(self.action_key))
        return tensordict.set(self.action_key, head)

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
