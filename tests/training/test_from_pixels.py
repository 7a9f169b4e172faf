"""DSRL-SAC from a picture alone steers a base policy that reads the state, as it does from the state."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl import LatentActionEnv, seeds
from dsrl_torchrl.agents import DSRLSAC
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.networks.config import NetworkConfig
from dsrl_torchrl.policies import BasePolicy

from .toy import GAMMA, run_online

SEEDS = seeds.first(seeds.HELD_OUT, 64)


class Strolling(BasePolicy):
    """At a third of the full speed to the middle; noise of 1.5 that points there makes it full speed."""

    def __init__(self):
        super().__init__(action_dim=2, pred_horizon=2)
        self.freeze()

    def forward(self, observation, noise):
        return (-10 * observation).clamp(-0.3, 0.3).unsqueeze(-2) + 0.5 * noise


def make_env(gamma=GAMMA):
    env = PointReachEnv(num_envs=32, max_episode_steps=16, image_size=32)
    return LatentActionEnv(env, Strolling(), gamma=gamma, noise_layout="repeat", action_magnitude=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["pixels", "observation"])
def test_the_point_arrives_in_time(tmp_path, entry):
    torch.manual_seed(0)
    networks = NetworkConfig(in_keys=[entry], num_critics=2, num_cells=(64, 64))
    config = DSRLSAC.Config(
        gamma=GAMMA, batch_size=64, critic_lr=1e-3, actor_lr=2e-3, tau=0.05, critic_only_updates=250, actor_average=0.9
    )
    agent = DSRLSAC(make_env(), config, networks)
    run_online(
        agent, tmp_path, env=make_env(), seed=0, total_env_steps=4_000, warmup_env_steps=2_000, utd=0.3,
        macro_steps_per_round=32, replay_size=20_000, checkpoint_env_steps=10_000, offline_fraction=0.0,
    )  # fmt: skip
    env = make_env(gamma=1.0)
    learned = evaluate(env, agent.kept_policy, SEEDS, deterministic=True).success_once.value
    prior = evaluate(env, PriorNoise(2), SEEDS).success_once.value
    assert prior < 0.6 and learned >= 0.95
