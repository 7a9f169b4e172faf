"""``dsrl stage1``: offline data and the offline warm start."""

from __future__ import annotations

from typing import Any

from dsrl_torchrl.cli.configured import make_latent_env
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.evaluation.figures import plot_stage1
from dsrl_torchrl.training.metrics_log import read_metrics
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.cli.steps.action_magnitude import settle_action_magnitude
from dsrl_torchrl.cli.steps.base import base
from dsrl_torchrl.cli.steps.offline_data import offline_data
from dsrl_torchrl.training.offline import Stage1Result, train_stage1

#: Resets of the check in the env: neither the held-out ones nor a training run's.
CHECK_SEED = 900_000_000


def stage1(run: Run) -> None:
    """Trains the latent policy offline; actor and critics go to ``stage1/``."""
    artifact, config = run.stage1_artifact, run.stage1
    if artifact.exists:
        run.say(f"stage 1: {artifact.folder} (exists)")
        return
    run.refuse_unfinished(artifact)
    metrics = artifact.folder / "metrics.csv"
    policy = base(run)
    settle_action_magnitude(run, policy)
    env = make_latent_env(run.cfg, policy)
    try:
        artifact.begin()
        run.save_config()
        data = offline_data(run, env, with_noise=not config.use_na)
        with run.metrics_log(metrics, "updates") as make_log:
            result = train_stage1(
                env,
                data,
                config,
                run.networks,
                seed=run.cfg.seed,
                folder=artifact.folder,
                resume=run.cfg.resume,
                make_log=make_log,
                progress=run.cfg.progress,
            )
        facts: dict[str, Any] = {
            "updates": result.updates,
            "wall_seconds": result.wall_seconds,
            "transitions": len(data),
        }
        facts |= {name: getattr(result, name) for name in ("q_prior", "q_policy", "q_gain", "q_gain_stderr")}
        if config.check_episodes:
            seeds = [CHECK_SEED + i for i in range(config.check_episodes)]
            label = "check stage 1" if run.cfg.progress else None
            facts["check"] = evaluate(env, result.actor, seeds, progress=label).to_dict()
    finally:
        env.close()
    title = f"{run.cfg.task.name}, seed {run.cfg.seed}"
    plot_stage1(read_metrics(metrics), artifact.folder / "stage1.png", title)
    artifact.finish(**facts)
    run.say(f"stage 1: {result.updates} updates on {len(data)} macro transitions, in {artifact.folder}")
    _say_check(run, result, facts.get("check"))


def _say_check(run: Run, result: Stage1Result, check: dict | None) -> None:
    run.say(
        f"check: E[Q^W(s, w)] {result.q_prior:.2f} for the prior, {result.q_policy:.2f} for the policy "
        f"(gain {result.q_gain:.2f} ± {1.96 * result.q_gain_stderr:.2f})"
    )
    if result.q_gain < 1.96 * result.q_gain_stderr:
        run.say("warning: the policy's noise is no better than the prior's by its own critic: stage 1 gained nothing")
    if check is not None:
        rate = check["success_once"]
        run.say(
            f"check: success {rate['value']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}] of {rate['n']} other resets"
        )
