"""Can this policy be steered at all, and how far: two measurements before any training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.arguments import positive_int
from dsrl_torchrl.policies.base_policy import BasePolicy

PROBE_NOISES = 8
REPEAT_TOLERANCE = 1e-3  # of the half action range: room for non-deterministic GPU kernels and bfloat16
RESPONSE_TOLERANCE = 1e-6

# On PickCube a spread of 0.03 left DSRL nothing to steer in 16k env steps, 0.15 and 0.27 did not.
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
        """Whether DSRL has, by experience, next to nothing to choose from (``spread < 0.05``)."""
        return self.spread < LOW_SPREAD


@torch.no_grad()
def probe(policy: BasePolicy, observation: Tensor | None = None) -> None:
    """Checks that the chunk is a function of the noise: the same noise twice, and other noises.

    Real policies fail both ways: VLA policies accept ``noise=`` and ignore it, and DDPM samplers draw fresh noise at
    every step.

    Args:
        policy: any device.
        observation: one observation ``[observation_dim]`` in env units; the mean of the training data by default.

    Raises:
        UserError: the policy is not deterministic, ignores its noise, or returns a wrong shape, NaN or infinity.
    """
    scales = policy.normalisation
    observation = scales.observation_mean if observation is None else observation.to(scales.observation_mean)
    observations = observation.expand(PROBE_NOISES, -1)
    noise, other_noise = _prior_noise(policy, 2, PROBE_NOISES)
    chunk, again, other = policy(observations, noise), policy(observations, noise), policy(observations, other_noise)

    name = type(policy).__name__
    if chunk.shape != noise.shape:
        raise UserError(f"{name} decodes noise {list(noise.shape)} into {list(chunk.shape)}: shapes must be equal")
    if not chunk.isfinite().all():
        raise UserError(f"{name} decodes finite noise into NaN or infinite actions: are its weights trained?")
    half_range = (scales.action_high - scales.action_low) / 2
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


@torch.no_grad()
def steerability(policy: BasePolicy, observations: Tensor, n_noises: int = 32, seed: int = 0) -> Steerability:
    """Measures the spread of the decoded action over the prior noise (DESIGN.md, "Steerability decides").

    Args:
        policy: any device.
        observations: ``[N, observation_dim]`` in env units; a few hundred that the policy meets.
        n_noises: noises per observation, at least 2; costs as many forward passes of batch N.
        seed: of the noises, which are the same for every policy and device.
    """
    positive_int("n_noises", n_noises, at_least=2)
    scales = policy.normalisation
    observations = observations.to(scales.observation_mean)
    noises = _prior_noise(policy, n_noises, len(observations), seed=seed)  # (M, N, H, A)
    chunks = torch.stack([policy(observations, noise) for noise in noises])
    half_range = (scales.action_high - scales.action_low) / 2
    per_dim = (chunks.std(0) / half_range).mean((0, 1))  # (A,)
    return Steerability(float(per_dim.mean()), tuple(per_dim.tolist()))


def _prior_noise(policy: BasePolicy, *batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*batch, policy.pred_horizon, policy.action_dim, generator=generator)
    return noise.to(policy.normalisation.action_low)
