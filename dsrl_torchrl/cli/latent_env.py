"""The latent env that a configuration describes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from functools import partial
from typing import Any

from torchrl.envs import EnvBase, ParallelEnv
from torchrl.envs.transforms import Transform

from dsrl_torchrl.cli.config import AUTO, RunConfig
from dsrl_torchrl.cli.targets import Target, make
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from dsrl_torchrl.networks.config import observation_keys
from dsrl_torchrl.policies.base_policy import BasePolicy
from dsrl_torchrl.steerability.action_magnitude import DEFAULT_MAGNITUDE


def make_latent_env(
    config: RunConfig,
    policy: BasePolicy,
    *,
    gamma: float | None = None,
    workers: int | None = None,
    below: Sequence[Transform] = (),
    **env_options: Any,
) -> LatentActionEnv:
    """Macro steps inside of the worker processes, one batched decode outside, on the base policy's device.

    Args:
        config: settled; an ``action_magnitude`` that is still ``auto`` counts as the default.
        policy: the frozen base policy.
        gamma: discount per primitive step; the algorithm's if ``None``.
        workers: number of processes; ``collector.num_workers`` if ``None``; 1 stays in this process.
        below: transforms below the macro step.
        env_options: arguments of the task's env that differ from the configuration.
    """
    task, latent = config.task, config.latent
    make_env = partial(
        _make_worker_env,
        task.env | env_options,
        act_horizon=task.act_horizon,
        gamma=config.algorithm.gamma if gamma is None else gamma,
        obs_horizon=policy.obs_horizon,
        history_keys=observation_keys(policy, config.networks),
        below=below,
    )
    workers = config.collector.num_workers if workers is None else workers
    # Without buffers: with them ParallelEnv polls its workers in a busy loop, which takes the core that a worker needs.
    env = make_env() if workers == 1 else ParallelEnv(workers, make_env, mp_start_method="spawn", use_buffers=False)
    return LatentActionEnv(
        env,
        policy,
        act_horizon=task.act_horizon,
        noise_layout=latent.noise_layout,
        action_magnitude=DEFAULT_MAGNITUDE if latent.action_magnitude == AUTO else latent.action_magnitude,
    )


def _make_worker_env(env: Target, **macro: Any) -> EnvBase:
    if multiprocessing.parent_process() is not None:
        # Ctrl-C reaches every process of the terminal; the main process alone answers, and closes its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return make_macro_env(make(env), **macro)
