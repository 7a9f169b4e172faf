"""The losses of a stage, made for a latent env, and the update that trains them."""

from __future__ import annotations

from pathlib import Path

from torchrl.modules import ProbabilisticActor
from torchrl.objectives import ValueEstimators

from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.objectives.q_action import ActionValueLoss
from dsrl_torchrl.objectives.aw_mle import AdvantageWeightedMLELoss
from dsrl_torchrl.objectives.noise_aliasing import NoiseAliasingLoss
from dsrl_torchrl.objectives.sac import LatentSACLoss, make_sac_loss
from dsrl_torchrl.training.latent_networks import (
    load_critics,
    make_action_value_network,
    make_noise_value_network,
    save_actor,
    save_critics,
)
from dsrl_torchrl.training.learner_config import LearnerConfig
from dsrl_torchrl.training.network_config import NetworkConfig
from dsrl_torchrl.training.update import LatentUpdate, NAUpdate, SACUpdate

Q_NOISE, Q_ACTION, Q_ACTION_TARGET = "q_noise", "q_action", "q_action_target"


def make_sac(
    env: LatentActionEnv,
    actor: ProbabilisticActor,
    config: LearnerConfig,
    networks: NetworkConfig,
    *,
    delay_qvalue: bool = True,
) -> LatentSACLoss:
    """SAC's loss for ``env`` with a fresh ``Q^W``."""
    return make_sac_loss(
        actor,
        make_noise_value_network(env, networks),
        latent_dim=env.noise_layout.dim,
        action_magnitude=env.decoder.action_magnitude,
        gamma=config.gamma,
        num_critics=networks.num_critics,
        backup=config.backup,
        alpha_init=config.alpha_init,
        alpha_parameterisation=config.alpha_parameterisation,
        fixed_alpha=config.fixed_alpha,
        target_entropy_per_dim=config.target_entropy_per_dim,
        delay_qvalue=delay_qvalue,
    )


def make_update(
    env: LatentActionEnv,
    actor: ProbabilisticActor,
    config: LearnerConfig,
    networks: NetworkConfig,
    *,
    noise_aliasing: bool,
) -> LatentUpdate:
    """The update of DSRL-NA or DSRL-SAC with fresh critics.

    Args:
        env: the latent env.
        actor: ``π^W``, trained in place.
        config: hyper-parameters.
        networks: sizes.
        noise_aliasing: learn ``Q^W`` by way of ``Q^A`` instead of by TD on the noise.
    """
    sac = make_sac(env, actor, config, networks, delay_qvalue=not noise_aliasing)
    aw_mle_loss = None
    if config.aw_mle:
        aw_mle_loss = AdvantageWeightedMLELoss(
            actor,
            sac.noise_values,
            latent_dim=env.noise_layout.dim,
            action_magnitude=env.decoder.action_magnitude,
            backup=config.backup,
            m_candidates=config.m_candidates,
            beta_latent=config.beta_latent,
            tau_baseline=config.tau_baseline,
        )
    if not noise_aliasing:
        return SACUpdate(sac, config.optimisers, aw_mle_loss, config.actor_batch_size)
    action_value = ActionValueLoss(
        actor,
        make_action_value_network(env, networks),
        env.decoder.decode,
        num_critics=networks.num_critics,
        backup=config.backup,
        # A policy that maximises no entropy has none in its value.
        temperature=0.0 if config.aw_mle else lambda: sac._alpha,
    )
    action_value.make_value_estimator(ValueEstimators.TD0, gamma=config.gamma)
    alias = NoiseAliasingLoss(
        sac.qvalue_network,
        action_value.action_values,
        env.decoder.decode,
        latent_dim=env.noise_layout.dim,
        num_critics=networks.num_critics,
        noise_value_params=sac.qvalue_network_params,
    )
    return NAUpdate(sac, action_value, alias, config.optimisers, aw_mle_loss, config.actor_batch_size)


def save_learner(update: LatentUpdate, actor: ProbabilisticActor, folder: Path) -> None:
    """Writes the latent policy, ``Q^W`` and, with noise aliasing, ``Q^A`` and its targets."""
    save_actor(actor, folder)
    save_critics(update.sac.qvalue_network_params, folder, Q_NOISE)
    if isinstance(update, NAUpdate):
        save_critics(update.action_value.action_value_network_params, folder, Q_ACTION)
        save_critics(update.action_value.target_action_value_network_params, folder, Q_ACTION_TARGET)


def load_learned_critics(update: LatentUpdate, folder: Path) -> None:
    """Reads the critics that :func:`save_learner` wrote into ``update``, in place.

    Raises:
        CheckpointError: a file is missing, damaged or of another size.
    """
    load_critics(update.sac.qvalue_network_params, folder, Q_NOISE)
    if isinstance(update, NAUpdate):
        load_critics(update.action_value.action_value_network_params, folder, Q_ACTION)
        load_critics(update.action_value.target_action_value_network_params, folder, Q_ACTION_TARGET)
    else:
        load_critics(update.sac.target_qvalue_network_params, folder, Q_NOISE)
