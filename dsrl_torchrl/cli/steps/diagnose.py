"""``dsrl diagnose``: can the base policy be steered here, and with which noise."""

from __future__ import annotations

from typing import Any

from dsrl_torchrl.cli.configured import make_latent_env
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.cli.artifacts import write_json
from dsrl_torchrl.steerability.page import plot_steerability
from dsrl_torchrl.steerability.report import SteerabilityReport, measure_steerability
from dsrl_torchrl.cli.steps.action_magnitude import settle_action_magnitude
from dsrl_torchrl.cli.steps.base import base
from dsrl_torchrl.training.latent_networks import load_actor
from dsrl_torchrl.training.learner import load_learned_critics, make_update
from dsrl_torchrl.training.update import NAUpdate


def diagnose(run: Run) -> SteerabilityReport:
    """Measures the base policy, and stage 1's actor and critics where they exist; prints the advice."""
    policy = base(run)
    settle_action_magnitude(run, policy)
    env = make_latent_env(run.cfg, policy, gamma=1.0)
    try:
        report = measure_steerability(
            env,
            resets=run.cfg.diagnosis.resets,
            repeats=run.cfg.diagnosis.repeats,
            seed=run.cfg.seed,
            progress=run.cfg.progress,
            **_learned(run, env),
        )
    finally:
        env.close()
    folder = run.folder / "diagnosis"
    write_json(folder / "steerability.json", report.to_dict())
    plot_steerability(report, folder / "steerability.png", f"{run.cfg.task.name}, seed {run.cfg.seed}")
    run.say(report.magnitude.reason)
    run.say(report.advice())
    run.say(f"{folder / 'steerability.json'}, {folder / 'steerability.png'}")
    return report


def _learned(run: Run, env: LatentActionEnv) -> dict[str, Any]:
    """Actor and critics of stage 1; empty before it, or where it learned Q^W without Q^A."""
    if not (run.stage1.use_na and run.stage1_artifact.exists):
        return {}
    folder = run.stage1_artifact.folder
    actor = load_actor(env, run.networks, folder)
    update = make_update(env, actor, run.stage1, run.networks, noise_aliasing=True)
    assert isinstance(update, NAUpdate)
    load_learned_critics(update, folder)
    return {
        "latent_policy": actor,
        "q_action": update.action_value.action_values,
        "q_noise": update.sac.noise_values,
    }
