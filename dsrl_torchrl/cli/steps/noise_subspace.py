"""``latent.subspace_dim``: the subspace of the noise in which this base policy is steered."""

from __future__ import annotations

from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.steerability.noise_subspace import SubspaceChoice, find_noise_subspace
from dsrl_torchrl.steerability.prior_rollouts import collect_prior_rollouts

RESETS = 20
OBSERVATIONS = 64
FILE = "basis.safetensors"


def measure_subspace(env: LatentActionEnv, dim: int, *, seed: int, progress: bool) -> tuple[SubspaceChoice, int]:
    """Finds it on observations of the base policy's own episodes, in an env that steers the whole noise.

    Returns:
        The subspace, and the env steps of the episodes.
    """
    label = "observations for subspace_dim" if progress else None
    rollouts = collect_prior_rollouts(env, resets=RESETS, repeats=1, seed=seed, progress=label)
    observations = rollouts.sample_observations(OBSERVATIONS).to(env.decoder.device)
    return find_noise_subspace(env.decoder, observations, dim, seed=seed), rollouts.env_steps
