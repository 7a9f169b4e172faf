"""The toy task as all tests of training use it: a base policy that can do everything, every agent in small."""

from __future__ import annotations

import torch

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLAWMLE, DSRLNA, DSRLSAC, REDQ, TD3, BestOfN
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.networks.config import NetworkConfig
from dsrl_torchrl.policies import BasePolicy
from dsrl_torchrl.training.metrics_log import MetricsLog
from dsrl_torchrl.training.offline import OfflineConfig, train_offline
from dsrl_torchrl.training.online import OnlineConfig, train_online

AGENTS = [DSRLSAC, DSRLNA, DSRLAWMLE, TD3, REDQ, BestOfN]
GAMMA = 0.9
#: Of the base policy's actions: noise of this size goes at full speed.
FULL_SPEED = 1.5


class NoiseIsAction(BasePolicy):
    """The policy that can do everything and wants nothing: chunk = noise / 1.5."""

    def __init__(self) -> None:
        super().__init__(action_dim=2, pred_horizon=2)
        self.freeze()

    def forward(self, observation, noise):
        return noise / FULL_SPEED


def make_env(gamma=GAMMA, num_envs=8, max_episode_steps=20):
    """Points that run to the origin; a macro step is one action, taken twice."""
    env = PointReachEnv(num_envs=num_envs, max_episode_steps=max_episode_steps)
    return LatentActionEnv(env, NoiseIsAction(), gamma=gamma, noise_layout="repeat", action_magnitude=FULL_SPEED)


def make_agent(kind, seed=0, env=None, num_cells=(16, 16), **options):
    """A small agent; options that its algorithm doesn't have are left out."""
    small = {"batch_size": 32, "gamma": GAMMA, "critic_only_updates": 10, "decoded_pairs": 4, "m_candidates": 8}
    small["target_critics"] = 1
    known = {name: value for name, value in (small | options).items() if name in kind.Config.model_fields}
    torch.manual_seed(seed)
    networks = NetworkConfig(num_critics=2, num_cells=num_cells)
    return kind(make_env() if env is None else env, kind.Config(**known), networks)


class Killed(Exception):
    """In the place of a process's end."""


class Rows(MetricsLog):
    """What a run logs; the run is killed at the first row at or after ``kill_at``."""

    def __init__(self, kill_at=None):
        super().__init__()
        self.since_start, self.kill_at = [], kill_at

    def __call__(self, step, metrics):
        if self.kill_at is not None and step >= self.kill_at:
            raise Killed
        super().__call__(step, metrics)
        self.since_start.append((step, metrics))


def run_offline(agent, data, folder, *, resume=False, kill_at=None, seed=3, key="", **options):
    """A short stage 1; its result and the rows that it logged."""
    log = Rows(kill_at)
    config = OfflineConfig(**{"updates": 60, "log_updates": 10, "checkpoint_updates": 20} | options)
    result = train_offline(
        agent, data, config, seed=seed, folder=folder, resume=resume, key=key, log=log, progress=False
    )
    return result, log.since_start


def run_online(
    agent,
    folder,
    *,
    env=None,
    offline=None,
    warm_up_by_prior=True,
    resume=False,
    kill_at=None,
    seed=3,
    key="",
    workers=None,
    evaluation=None,
    **options,
):
    """A short stage 2; its result and the rows that it logged."""
    small = {
        "total_env_steps": 800,
        "warmup_env_steps": 200,
        "macro_steps_per_round": 16,
        "replay_size": 2_000,
        "offline_fraction": 0.5,
        "checkpoint_env_steps": 200,
        "log_env_steps": 50,
    }
    log = Rows(kill_at)
    result = train_online(
        make_env() if env is None else env,
        agent,
        OnlineConfig(**small | options),
        seed=seed,
        folder=folder,
        offline=offline,
        warm_up_by_prior=warm_up_by_prior,
        resume=resume,
        key=key,
        log=log,
        progress=False,
        workers=workers,
        evaluation=evaluation,
    )
    return result, log.since_start


def assert_same_state(agent, other):
    """Bit for bit: networks, targets, averages, temperatures."""
    first, second = agent.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(second[name], value), name


def tiny(agent, folder, **options):
    """Four segments of few macro steps, the first one without updates."""
    small = {"total_env_steps": 200, "warmup_env_steps": 60, "checkpoint_env_steps": 50, "log_env_steps": 30}
    return run_online(agent, folder, **small | {"macro_steps_per_round": 8} | options)
