"""The frozen base policy as an inverse env transform: noise in, action chunk out; and the spec of that noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Bounded, TensorSpec, Unbounded
from torchrl.data.tensor_specs import BoundedContinuous
from torchrl.envs.transforms import Transform

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.noise_layout import NoiseLayout
from dsrl_torchrl.latent_env.noise_subspace import NoiseSubspace
from dsrl_torchrl.policies.base_policy import BasePolicy


class NoiseDecoder(Transform):
    """Turns the latent action ``w`` into the executed head of ``decode(s, w)``.

    What the policy decodes is what reached this transform from below, whatever stands above it. To that end every
    entry that it reads rides along in the TensorDict, as bytes that no other transform takes for an observation, under
    a private name (:func:`raw_key`), which TorchRL's collectors leave out of their batches.

    Args:
        base_policy: frozen; reads its :attr:`~dsrl_torchrl.policies.base_policy.BasePolicy.in_keys`.
        act_horizon: number of actions of the chunk that the env executes, from the policy's ``first_action`` on.
        noise_layout: one of :data:`~dsrl_torchrl.latent_env.noise_layout.NOISE_LAYOUTS`.
        knots: steps whose noise is steered by the layout ``interpolated``.
        action_magnitude: bound of the action spec, ``|w_i| <= action_magnitude``, in standard deviations of the
            prior. The official runs use 1.0 to 2.5. Noise beyond the bound is decoded as it is: the prior
            ``N(0, I)`` of the base policy itself has no bound.
        subspace: what is steered of the layout's noise; ``None`` for all of it.

    The latent action ``action`` ``[*B, latent_dim]`` becomes ``[*B, act_horizon, action_dim]`` in the env's dtype. Of
    size ``layout.full_dim`` it is the base policy's own noise, in whatever layout.

    Raises:
        UserError: an unknown layout, a non-positive ``action_magnitude``, or a head that ends beyond the chunk.
    """

    def __init__(
        self,
        base_policy: BasePolicy,
        *,
        act_horizon: int,
        noise_layout: str = "full",
        knots: int = 2,
        action_magnitude: float = 1.5,
        subspace: NoiseSubspace | None = None,
    ) -> None:
        if not action_magnitude > 0:
            raise UserError(f"action_magnitude must be positive, got {action_magnitude}")
        executable = base_policy.pred_horizon - base_policy.first_action
        if not 1 <= act_horizon <= executable:
            raise UserError(
                f"act_horizon must lie between 1 and {executable} (the base policy's pred_horizon "
                f"{base_policy.pred_horizon}, from its action {base_policy.first_action} on); got {act_horizon}"
            )
        super().__init__(in_keys_inv=["action"], out_keys_inv=["action"])
        self.layout = NoiseLayout(
            noise_layout, base_policy.noise_horizon, base_policy.noise_dim, act_horizon, base_policy.first_action, knots
        )
        if subspace is not None and len(subspace.basis) != self.layout.dim:
            raise UserError(
                f"the noise subspace's basis has {len(subspace.basis)} rows, the layout {noise_layout} has "
                f"{self.layout.dim} dimensions: measure it for this policy and layout"
            )
        # There already: a copy from the host within an update is none that a CUDA graph can capture.
        self.subspace = None if subspace is None else NoiseSubspace(subspace.basis.to(base_policy.device))
        self.base_policy = base_policy
        self.act_horizon = act_horizon
        self.action_magnitude = float(action_magnitude)
        # The env's, which its specs tell.
        self._entry_dtypes: dict[NestedKey, torch.dtype] = {}
        self._action_dtype = torch.get_default_dtype()
        self._watched_steps: int | None = None

    @property
    def latent_dim(self) -> int:
        """Size of the latent action."""
        return self.layout.dim if self.subspace is None else self.subspace.dim

    @property
    def device(self) -> torch.device:
        """Where chunks are decoded."""
        return self.base_policy.device

    def decode(self, observations: TensorDictBase, latent_action: Tensor) -> Tensor:
        """Observations ``[*B]``, ``[*B, latent_dim]`` -> the executed head ``[*B, act_horizon, action_dim]``.

        Deterministic in both arguments, differentiable in ``latent_action`` when that requires grad and the base policy
        is differentiable. A latent action of a ``subspace`` is completed by a draw of the global generator first
        (:meth:`~dsrl_torchrl.latent_env.noise_subspace.NoiseSubspace.complete`): what is completed by the caller is
        deterministic again.

        Args:
            observations: the entries as the env gave them to the base policy: nothing above the decoder has altered
                them.
            latent_action: the subspace's, of the layout's size, or ``[*B, layout.full_dim]``: the base policy's own
                noise.
        """
        if self.subspace is not None and latent_action.shape[-1] == self.subspace.dim:
            latent_action = self.subspace.complete(latent_action)
        chunk = self.base_policy.decode(observations, self.layout.to_chunk_noise(latent_action))
        first = self.base_policy.first_action
        return chunk[..., first : first + self.act_horizon, :]

    def watch_stored_entries(self) -> None:
        """Compares what the transforms above made of the policy's entries with the entries themselves, from now on.

        For an algorithm that decodes what it has stored. The steps compared are the 1st, 2nd, 4th, 8th, ...: no cost
        in a loop, and a transform that leaves a reset or an early observation as it is does not get away with it.
        A step raises ``UserError`` where they differ by more than a cast.
        """
        self._watched_steps = 0 if self._watched_steps is None else self._watched_steps

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        for key in self.base_policy.in_keys:
            entry = next_tensordict.get(key).clone()  # a transform above may work in place
            next_tensordict.set(raw_key(key), entry.unsqueeze(-1).view(torch.uint8))
        return next_tensordict

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        latent_action = tensordict.get("action")
        observations = tensordict.empty()
        for key in self.base_policy.in_keys:
            observations.set(key, self._raw(tensordict, key))
        if self._watched_steps is not None:
            self._watched_steps += 1
            if self._watched_steps.bit_count() == 1:
                self._compare(tensordict, observations)
        with torch.no_grad():
            head = self.decode(observations, latent_action)
        return tensordict.set("action", head.to(self._action_dtype))

    def _compare(self, tensordict: TensorDictBase, observations: TensorDictBase) -> None:
        for key in self.base_policy.in_keys:
            stored, raw = tensordict.get(key, None), observations.get(key)
            if stored is None:  # nor can it be decoded
                continue
            same = stored.shape == raw.shape and torch.allclose(stored, raw.to(stored.dtype), 0.0, 0.0, equal_nan=True)
            if not same:
                raise UserError(
                    f"the algorithm decodes the {key!r} that it stores, but a transform above the base policy has "
                    "changed it: write to an entry of another name there, or put it below for the policy, too"
                )

    def _raw(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        raw = tensordict.get(raw_key(key), None)
        if raw is None or raw.dtype != torch.uint8:
            raise UserError(
                f"the base policy decodes the entry {raw_key(key)!r} of the last reset() or step(), which is "
                f"{'missing' if raw is None else raw.dtype}: step with what they returned, and let no transform above "
                "remove or cast that entry"
            )
        return raw.view(self._entry_dtypes[key]).squeeze(-1)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        for key in self.base_policy.in_keys:
            spec = observation_spec[key]
            self._entry_dtypes[key] = spec.dtype
            shape = (*spec.shape, spec.dtype.itemsize)
            observation_spec[raw_key(key)] = Unbounded(shape, dtype=torch.uint8, device=spec.device)
        return observation_spec

    def transform_input_spec(self, input_spec: TensorSpec) -> TensorSpec:
        full_action_spec = input_spec["full_action_spec"]
        spec = full_action_spec["action"]  # (*B, act_horizon, action_dim)
        self._action_dtype = spec.dtype
        full_action_spec["action"] = NoiseSpec(
            -self.action_magnitude,
            self.action_magnitude,
            shape=(*spec.shape[:-2], self.latent_dim),
            dtype=torch.get_default_dtype(),  # the learner's: the env has its own
            device=spec.device,
        )
        return input_spec


def raw_key(key: NestedKey) -> str:
    """Where an entry rides along as the base policy reads it: ``[*B, ..., bytes of one number]`` uint8."""
    return ".".join(["_base_policy", *([key] if isinstance(key, str) else key)])


class _NoiseSpecMeta(type(Bounded)):  # type: ignore[misc]
    def __call__(cls, *args, **kwargs):
        # TorchRL's own makes a BoundedContinuous out of whatever is bounded.
        spec = super().__call__(*args, **kwargs)
        spec.__class__ = cls
        return spec


class NoiseSpec(BoundedContinuous, metaclass=_NoiseSpecMeta):
    """Noise in the box ``[low, high]``; :meth:`rand` draws the prior ``N(0, I)``, clamped to it.

    Uniform noise in the box, a bounded spec's default, is not what a base policy was trained on. As a property of the
    spec this holds wherever random actions are made: ``env.rand_action``, ``RandomPolicy``, a batch of latent envs.
    """

    def rand(self, shape: Sequence[int] | None = None) -> Tensor:
        """``[*shape, *self.shape]``."""
        noise = torch.randn(*(shape or ()), *self.shape, dtype=self.dtype, device=self.device)
        return noise.clamp_(self.low, self.high)

    def to(self, dest: torch.dtype | torch.device | str | int | None) -> NoiseSpec:
        spec = super().to(dest)
        spec.__class__ = type(self)  # TorchRL's makes a Bounded
        return spec
