"""Can this policy be steered at all, and how far: two measurements before any training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dsrl_torchrl.errors import UserError, positive_int
from dsrl_torchrl.policies.base_policy import BasePolicy

PROBE_NOISES = 8
REPEAT_TOLERANCE = 1e-3  # of the half action range: room for non-deterministic GPU kernels and bfloat16
RESPONSE_TOLERANCE = 1e-6
RETURNED_TOLERANCE = 0.05  # a DDIM of one step, trained or not, is within 0.03 of its noise

#: A spread below this leaves DSRL next to nothing to choose from.
LOW_SPREAD = 0.05


@dataclass(frozen=True)
class Steerability:
    """How far the noise moves the decoded action.

    Attributes:
        spread: standard deviation over ``N(0, I)`` noises of the decoded action, scaled to the action range [-1, 1],
            averaged over observations, chunk steps and action dims.
        per_action_dim: the same for each action dim, e.g. to see that only the gripper moves.
    """

    spread: float
    per_action_dim: tuple[float, ...]

    @property
    def too_small(self) -> bool:
        """Whether DSRL has, by experience, next to nothing to choose from (``spread < LOW_SPREAD``)."""
        return self.spread < LOW_SPREAD


@torch.no_grad()
def probe(policy: BasePolicy, observations: TensorDictBase) -> None:
    """Checks that the chunk is a function of the noise: the same noise twice, and other noises.

    Real policies fail in every way: VLA policies accept ``noise=`` and ignore it, DDPM samplers draw fresh noise at
    every step, and a sampler that starts behind its schedule returns the noise that it got, which looks fine to steer.

    Args:
        policy: any device.
        observations: ``[n]``, the policy's entries; the first 8 are used, fewer are repeated.

    Raises:
        UserError: no observations; or the policy is not deterministic, ignores its noise, returns it as it is, or
            returns a wrong shape, NaN or infinity.
    """
    name = type(policy).__name__
    if not len(observations):
        raise UserError(f"{name} cannot be probed without observations, got none")
    observations = observations[torch.arange(PROBE_NOISES, device=observations.device) % len(observations)]
    observations = observations.to(policy.device)
    noise, other_noise = _prior_noise(policy, 2, PROBE_NOISES)
    chunk, again, other = (policy.decode(observations, w) for w in (noise, noise, other_noise))

    expected = (PROBE_NOISES, policy.pred_horizon, policy.action_dim)
    if chunk.shape != expected:
        raise UserError(
            f"{name} should decode noise {list(noise.shape)} into [batch, pred_horizon, action_dim] = "
            f"{list(expected)}, got {list(chunk.shape)}"
        )
    if not chunk.isfinite().all():
        raise UserError(f"{name} decodes finite noise into NaN or infinite actions: are its weights trained?")
    half_range = (policy.action_high - policy.action_low) / 2
    if not bool((half_range > 0).all() and half_range.isfinite().all()):  # else every comparison below is with NaN
        raise UserError(f"{name} should have action_low below action_high in every dimension, both finite")
    repeated = float(((chunk - again) / half_range).abs().max())
    responded = float(((chunk - other) / half_range).abs().max())
    if repeated > REPEAT_TOLERANCE:
        raise UserError(
            f"{name} is not deterministic: the same noise twice gives actions that differ by {repeated:.2g} "
            "of their half range; use a deterministic sampler, such as DDIM with eta=0 instead of DDPM"
        )
    if responded <= max(repeated, RESPONSE_TOLERANCE):
        raise UserError(
            f"{name} ignores its noise: {PROBE_NOISES} other noises give the same actions; nothing to steer"
        )
    if noise.shape == chunk.shape:
        returned = float((policy.normalise_action(chunk) - noise)[noise.abs() < 1].abs().mean())
        if returned < RETURNED_TOLERANCE:
            raise UserError(
                f"{name} returns its noise as the actions (they differ by {returned:.2g} of their half range): "
                "is its sampler of too few steps, or its schedule another one?"
            )


@torch.no_grad()
def steerability(policy: BasePolicy, observations: TensorDictBase, n_noises: int = 32, seed: int = 0) -> Steerability:
    """Measures the spread of the decoded action over the prior noise.

    Args:
        policy: any device.
        observations: ``[N]``, the policy's entries; a few hundred that the policy meets.
        n_noises: noises per observation, at least 2; costs as many forward passes of batch N.
        seed: of the noises, which are the same for every policy and device.
    """
    positive_int("n_noises", n_noises, at_least=2)
    observations = observations.to(policy.device)
    noises = _prior_noise(policy, n_noises, len(observations), seed=seed)
    chunks = torch.stack([policy.decode(observations, noise) for noise in noises])  # (M, N, H, A)
    half_range = (policy.action_high - policy.action_low) / 2
    per_dim = (chunks.std(0) / half_range).mean((0, 1))  # (A,)
    return Steerability(float(per_dim.mean()), tuple(per_dim.tolist()))


def _prior_noise(policy: BasePolicy, *batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*batch, policy.noise_horizon, policy.noise_dim, generator=generator)
    return noise.to(policy.device)
