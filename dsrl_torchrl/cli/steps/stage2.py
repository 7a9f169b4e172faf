"""``dsrl stage2``: online steering."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase

from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.agents.curve_checks import curve_warnings
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.folder import metrics_log
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.training.metrics_log import read_metrics
from dsrl_torchrl.training.online import train_online


def train_stage2(
    agent: Agent, env: LatentActionEnv, offline: TensorDictBase | None, config: RunConfig, folder: Path, metrics: Path
) -> tuple[dict[str, Any], list[str]]:
    """Trains ``agent`` online and writes it to ``folder``.

    Returns:
        What is to be recorded of it, and the warnings that its curves give.
    """
    with metrics_log(config, metrics, "env_steps") as make_log:
        result = train_online(
            env,
            agent,
            config.stage2,
            seed=config.seed,
            folder=folder,
            offline=offline,
            # A policy that has learned offline collects its own warm-up; an untrained one is worse than the prior.
            warm_up_by_prior="actor" not in config.stage2.from_stage1,
            resume=config.resume,
            make_log=make_log,
            progress=config.progress,
        )
    agent.save(folder)
    return asdict(result), curve_warnings(read_metrics(metrics), env.latent_dim, agent.curve_checks)
