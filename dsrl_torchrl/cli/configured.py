"""From the composed configuration: its checks, and the latent env it describes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from functools import partial

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torchrl.envs import EnvBase, ParallelEnv
from torchrl.envs.transforms import Transform

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from dsrl_torchrl.latent_env.noise_layout import NOISE_LAYOUTS
from dsrl_torchrl.training.metrics_log import check_logger
from dsrl_torchrl.policies import BasePolicy


def check_config(cfg: DictConfig) -> None:
    """Finds what is wrong with an option before any long work.

    Raises:
        UserError: names the option, what is allowed and what was given.
    """
    task, latent = cfg.task, cfg.latent
    if not 1 <= task.act_horizon <= task.pred_horizon:
        raise UserError(
            f"act_horizon must lie between 1 and pred_horizon ({task.pred_horizon}); got {task.act_horizon}"
        )
    if latent.action_magnitude != "auto" and not _is_positive(latent.action_magnitude):
        raise UserError(f"latent.action_magnitude must be positive or auto, got {latent.action_magnitude}")
    if latent.noise_layout not in NOISE_LAYOUTS:
        raise UserError(f"latent.noise_layout must be one of {', '.join(NOISE_LAYOUTS)}; got {latent.noise_layout!r}")
    if cfg.evaluation.episodes < 1:
        raise UserError(f"evaluation.episodes must be at least 1, got {cfg.evaluation.episodes}")
    check_logger(**cfg.logger)
    if cfg.base_policy.checkpoint is None:
        # A tiny one of the same options: what is wrong with them shows before the demonstrations are made.
        with torch.random.fork_rng(devices=[]):
            instantiate(cfg.base_policy.policy, _convert_="all")(
                observation_dim=task.obs_horizon,
                action_dim=1,
                pred_horizon=task.pred_horizon,
                obs_horizon=task.obs_horizon,
            )


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and value > 0


def make_latent_env(
    cfg: DictConfig,
    policy: BasePolicy,
    *,
    gamma: float | None = None,
    workers: int | None = None,
    below: Sequence[Transform] = (),
    **env_options,
) -> LatentActionEnv:
    """The latent env of a configuration: macro steps inside the worker processes, one batched decode outside.

    Args:
        cfg: ``conf/config.yaml``, composed.
        policy: the frozen base policy.
        gamma: discount per primitive step; the algorithm's if ``None``.
        workers: number of processes; ``collector.num_workers`` if ``None``; 1 stays in this process.
        below: transforms below the macro step.
        env_options: arguments of the task's env that differ from the configuration.
    """
    make_env = partial(
        _make_worker_env,
        cfg.task.env,
        env_options,
        act_horizon=cfg.task.act_horizon,
        gamma=cfg.algorithm.gamma if gamma is None else gamma,
        obs_horizon=cfg.task.obs_horizon,
        below=below,
    )
    workers = cfg.collector.num_workers if workers is None else workers
    # Without buffers: with them ParallelEnv polls its workers in a busy loop, which takes the core that a worker needs.
    env = make_env() if workers == 1 else ParallelEnv(workers, make_env, mp_start_method="spawn", use_buffers=False)
    return LatentActionEnv(
        env,
        policy,
        act_horizon=cfg.task.act_horizon,
        noise_layout=cfg.latent.noise_layout,
        action_magnitude=cfg.latent.action_magnitude,
    )


def _make_worker_env(env_config: DictConfig, options: dict, **macro) -> EnvBase:
    if multiprocessing.parent_process() is not None:
        # Ctrl-C reaches every process of the terminal; the main process alone answers, and closes its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return make_macro_env(instantiate(env_config)(**options), **macro)
