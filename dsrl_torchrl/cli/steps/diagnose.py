"""``dsrl diagnose``: can the base policy be steered here, and with which noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.files import write_json
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.steerability.page import plot_steerability
from dsrl_torchrl.steerability.report import SteerabilityReport, measure_steerability


def diagnose_base(
    env: LatentActionEnv, learned: Agent | None, config: RunConfig, folder: Path
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
        progress=config.progress,
        **known,
    )
    numbers, page = folder / "steerability.json", folder / "steerability.png"
    write_json(numbers, report.to_dict())
    plot_steerability(report, page, config.title)
    return report, [numbers, page]
