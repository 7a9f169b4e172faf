"""Latent policy and critics learn from a picture what they learn from the state, which the base policy reads."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl import LatentActionEnv, seeds
from dsrl_torchrl.agents import DSRLSAC
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.networks.config import NetworkConfig

from .toy import FULL_SPEED, GAMMA, NoiseIsAction, run_online

SEEDS = seeds.first(seeds.HELD_OUT, 32)


def make_env(gamma=GAMMA, image_size=32):
    env = PointReachEnv(num_envs=32, max_episode_steps=20, image_size=image_size)
    return LatentActionEnv(env, NoiseIsAction(), gamma=gamma, noise_layout="repeat", action_magnitude=FULL_SPEED)


@pytest.mark.slow
@pytest.mark.parametrize("actor_encoder", ["shared", "own"])
def test_what_is_reachable_is_reached(tmp_path, actor_encoder):
    """As test_online's, from pixels."""
    torch.manual_seed(0)
    networks = NetworkConfig(
        in_keys=["pixels"], num_critics=2, num_cells=(64, 64), actor_encoder=actor_encoder, random_shift=0
    )
    config = DSRLSAC.Config(
        gamma=GAMMA, batch_size=64, critic_lr=2e-3, tau=0.03, critic_only_updates=300, actor_average=0.9, actor_lr=2e-3
    )
    agent = DSRLSAC(make_env(), config, networks)
    run_online(
        agent, tmp_path, env=make_env(), seed=0, total_env_steps=6_000, warmup_env_steps=2_000, utd=0.35,
        macro_steps_per_round=32, replay_size=20_000, checkpoint_env_steps=10_000, offline_fraction=0.0,
    )  # fmt: skip
    env = make_env(gamma=1.0)
    learned = evaluate(env, agent.kept_policy, SEEDS, deterministic=True)
    prior = evaluate(env, PriorNoise(2), SEEDS)
    print(actor_encoder, learned, prior)
    assert learned.success_once.value == 1.0
    assert prior.success_once.value < 0.7
