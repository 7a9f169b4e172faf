"""The networks of stage 2 for a latent env: made, saved, loaded."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torchrl.modules import ProbabilisticActor

from dsrl_torchrl.errors import CheckpointError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.modules.latent_actor import make_latent_actor
from dsrl_torchrl.modules.latent_critic import make_latent_critic
from dsrl_torchrl.modules.observation_features import ObservationFeatures
from dsrl_torchrl.objectives.sac import LatentSACLoss, make_sac_loss
from dsrl_torchrl.training.stage2_config import ACTIVATIONS, Stage2Config


def make_actor(env: LatentActionEnv, config: Stage2Config) -> ProbabilisticActor:
    """The latent policy for ``env``, with the base policy's observation statistics."""
    decoder = env.decoder
    return make_latent_actor(
        features=_features(env, config),
        latent_dim=decoder.layout.dim,
        action_magnitude=decoder.action_magnitude,
        num_cells=config.num_cells,
        activation=ACTIVATIONS[config.activation],
        initial_std=config.initial_std,
    )


def make_loss(env: LatentActionEnv, actor: ProbabilisticActor, config: Stage2Config) -> LatentSACLoss:
    """The SAC loss for ``env`` with a fresh critic ensemble."""
    decoder = env.decoder
    critic = make_latent_critic(
        features=_features(env, config),
        latent_dim=decoder.layout.dim,
        action_magnitude=decoder.action_magnitude,
        num_cells=config.num_cells,
        activation=ACTIVATIONS[config.activation],
        layer_norm=config.layer_norm,
    )
    return make_sac_loss(
        actor,
        critic,
        latent_dim=decoder.layout.dim,
        action_magnitude=decoder.action_magnitude,
        gamma=config.gamma,
        num_critics=config.num_critics,
        backup=config.backup,
        alpha_init=config.alpha_init,
        alpha_parameterisation=config.alpha_parameterisation,
        fixed_alpha=config.fixed_alpha,
        target_entropy_per_dim=config.target_entropy_per_dim,
    )


def _features(env: LatentActionEnv, config: Stage2Config) -> ObservationFeatures:
    scales = env.decoder.base_policy.normalisation
    return ObservationFeatures(scales.observation_mean, scales.observation_std, config.fourier_bands)


def save_actor(actor: ProbabilisticActor, folder: Path) -> None:
    """Writes the latent policy's weights to ``folder/actor.safetensors``, atomically."""
    temporary = folder / "actor.safetensors.tmp"
    save_file({name: tensor.contiguous() for name, tensor in actor.state_dict().items()}, temporary)
    os.replace(temporary, folder / "actor.safetensors")


def load_actor(env: LatentActionEnv, config: Stage2Config, folder: Path) -> ProbabilisticActor:
    """Reads what :func:`save_actor` wrote, for the same env and configuration.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, or of another size.
    """
    path = folder / "actor.safetensors"
    actor = make_actor(env, config)
    try:
        actor.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no latent policy for this run: {str(error).splitlines()[0]}") from None
    return actor.eval()
