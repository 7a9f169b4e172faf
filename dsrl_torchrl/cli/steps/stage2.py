"""``dsrl stage2``: online steering."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase

from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.agents.curve_checks import curve_warnings
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.folder import metrics_log
from dsrl_torchrl.cli.latent_env import make_latent_env, make_side_env
from dsrl_torchrl.evaluation.progress import ProgressEvaluation
from dsrl_torchrl.evaluation.summary import logged_rows, rows_hash
from dsrl_torchrl.latent_env.base_chunk import ResidualPolicy
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.prior_noise import whole_base
from dsrl_torchrl.policies import BasePolicy, IdentityPolicy
from dsrl_torchrl.training.online import train_online


def train_stage2(
    agent: Agent,
    env: LatentActionEnv,
    offline: TensorDictBase | None,
    config: RunConfig,
    folder: Path,
    metrics: Path,
    *,
    key: str,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], list[Path]]:
    """Trains ``agent`` online and writes it to ``folder``; says what its curves warn of.

    Returns:
        What is to be recorded of it, and its files.
    """
    with (
        metrics_log(config, metrics, "env_steps", "stage2") as log,
        ray_workers(config, agent) as workers,
        ProgressEvaluation(
            partial(
                make_side_env,
                config,
                run_policy(agent),
                1.0,
                subspace=agent.decoder.subspace,
                terminate_on_success=False,
            ),
            config.stage2.eval_episodes,
        ) as evaluation,
    ):
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
            key=key,
            log=log,
            progress=config.progress,
            say=say,
            workers=workers,
            evaluation=evaluation,
        )
    files = agent.save(folder)
    for warning in curve_warnings(log.rows, env.latent_dim, agent.curve_checks):
        say(f"warning: {warning}")
    # The metrics are no file of the result, as in stage 1: what they hold of it is.
    rows = logged_rows(metrics.parent, result.env_steps)
    return asdict(result) | {"logged": rows_hash(rows)}, files


def ray_workers(config: RunConfig, agent: Agent) -> AbstractContextManager[Any]:
    """The env workers on Ray that the configuration asks for; ``None`` where it asks for none."""
    if config.collector.ray_workers is None:
        return nullcontext()
    from dsrl_torchrl.collect.ray_workers import RayWorkers

    policy = deepcopy(run_policy(agent)).cpu()
    make_env = partial(make_latent_env, config, policy, workers=1, subspace=agent.decoder.subspace)
    return RayWorkers(make_env, config.collector.ray_workers, address=config.collector.ray_address)


def run_policy(agent: Agent) -> BasePolicy:
    """The run's base policy, with its encoder, and without what the latent env puts around it."""
    policy = whole_base(agent.decoder)
    return policy.base if isinstance(policy, (IdentityPolicy, ResidualPolicy)) else policy
