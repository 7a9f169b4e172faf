"""``dsrl diagnose``: can the base policy be steered here, and with which noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.latent_env import make_side_env
from dsrl_torchrl.files import write_json
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.saved_states import can_restore
from dsrl_torchrl.policies import BasePolicy
from dsrl_torchrl.steerability.critic_ranking import CriticRanking, critic_ranking
from dsrl_torchrl.steerability.page import plot_steerability
from dsrl_torchrl.steerability.report import SteerabilityReport, measure_steerability


def diagnose_base(
    env: LatentActionEnv, policy: BasePolicy, learned: Agent | None, config: RunConfig, folder: Path
) -> tuple[SteerabilityReport, list[Path]]:
    """Measures the base policy, and the actor and critics of ``learned``; writes the numbers and the page."""
    known: dict[str, Any] = {}
    if learned is not None:
        known = {
            "latent_policy": learned.kept_policy,
            "q_action": learned.chunk_values,
            "q_noise": learned.noise_values,
        }
    report = measure_steerability(
        env,
        resets=config.diagnosis.resets,
        repeats=config.diagnosis.repeats,
        seed=config.seed,
        knows_success=config.task.knows_success,
        progress=config.progress,
        **known,
    )
    if learned is not None and config.diagnosis.ranking_states:
        ranking = rank_critics(learned, policy, config)
        if isinstance(ranking, str):
            report = replace(report, left_out=(*report.left_out, ranking))
        else:
            report = replace(report, critic_ranking=ranking)
    numbers, page = folder / "steerability.json", folder / "steerability.png"
    write_json(numbers, report.to_dict())
    plot_steerability(report, page, config.title)
    return report, [numbers, page]


def rank_critics(learned: Agent, policy: BasePolicy, config: RunConfig) -> CriticRanking | str:
    """How the critics of ``learned`` rank noises; where that cannot be measured, why."""
    gamma = learned.config.gamma
    if gamma == 1:
        return "the critics' ranking is not measured: without a discount a time limit has no value"
    env = make_side_env(config, policy, gamma)  # simulations of worker processes cannot be told to go back
    try:
        if not can_restore(env):
            return "the critics' ranking is not measured: the task's env has no get_state() and set_state()"
        return critic_ranking(
            env,
            learned.kept_policy,
            q_action=learned.chunk_values,
            q_noise=learned.noise_values,
            states=config.diagnosis.ranking_states,
            noises=config.diagnosis.ranking_noises,
            seed=config.seed,
            progress="critics' ranking" if config.progress else None,
        )
    finally:
        env.close()
