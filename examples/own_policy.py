r"""A policy of your own, steered: any function of observation and noise, in a `BasePolicy` of ten lines.

    python -m examples.own_policy

The same class serves every step of `dsrl`, by its import path; what stands beside it are its arguments:

    PYTHONPATH=. dsrl diagnose task=toy task.env.max_episode_steps=16 base_policy=load \
        base_policy.load._target_=examples.own_policy.WalkPolicy
    PYTHONPATH=. dsrl run experiment=smoke task=toy base_policy=load \
        base_policy.load._target_=examples.own_policy.WalkPolicy
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from dsrl_torchrl import LatentActionEnv, seeds
from dsrl_torchrl.agents import DSRLAWMLE
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.policies import BasePolicy
from dsrl_torchrl.training.online import OnlineConfig, train_online


def walk(position: Tensor, noise: Tensor) -> Tensor:
    """Somebody's policy: slowly to the middle, ``[*B, 2]``, noise ``[*B, 4, 2]`` -> actions ``[*B, 4, 2]``."""
    return ((-10 * position).clamp(-0.4, 0.4).unsqueeze(-2) + 0.5 * noise).clamp(-1, 1)


class WalkPolicy(BasePolicy):
    """What makes it a base policy: its sizes, the entries that it reads, one call."""

    def __init__(self) -> None:
        super().__init__(action_dim=2, pred_horizon=4, in_keys=["observation"])

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        """The entries of ``in_keys`` in order, then the noise."""
        return walk(observation, noise)


def main(env_steps: int = 4_000, episodes: int = 50) -> dict[str, float]:
    """Mean steps to the goal of the base policy and of the steered one, in at most 40."""
    torch.manual_seed(0)
    policy = WalkPolicy().freeze()
    env = LatentActionEnv(PointReachEnv(num_envs=8), policy, gamma=0.98)
    agent = DSRLAWMLE(env)
    config = OnlineConfig(
        total_env_steps=env_steps, warmup_env_steps=env_steps // 4, offline_fraction=0.0, checkpoint_env_steps=env_steps
    )
    with tempfile.TemporaryDirectory() as folder:
        train_online(env, agent, config, seed=0, folder=Path(folder))
    held_out = LatentActionEnv(PointReachEnv(num_envs=8, terminate_on_success=False), policy, gamma=1.0)
    starts = seeds.first(seeds.HELD_OUT, episodes)
    policies = {"base": PriorNoise(env.latent_dim), "steered": agent.kept_policy}
    lengths = {name: evaluate(held_out, acts, starts).length_mean for name, acts in policies.items()}
    print(", ".join(f"{name}: {length:.1f} steps to the goal" for name, length in lengths.items()))
    return lengths


if __name__ == "__main__":
    main()
