"""``latent.action_magnitude=auto``: the bound that suits this base policy."""

from __future__ import annotations

from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.steerability.action_magnitude import MagnitudeChoice, choose_action_magnitude
from dsrl_torchrl.steerability.prior_rollouts import collect_prior_rollouts

RESETS = 20
OBSERVATIONS = 256


def measure_magnitude(env: LatentActionEnv, *, seed: int, progress: bool) -> MagnitudeChoice:
    """Chooses the bound on observations of the base policy's own episodes; prior noise is not bounded by the env's."""
    label = "observations for action_magnitude" if progress else None
    rollouts = collect_prior_rollouts(env, resets=RESETS, repeats=1, seed=seed, progress=label)
    return choose_action_magnitude(env.decoder, rollouts.sample_observations(OBSERVATIONS), seed=seed)
