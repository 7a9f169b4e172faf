"""``dsrl stage2``: online steering."""

from __future__ import annotations

from functools import partial

from dsrl_torchrl.cli.configured import make_latent_env
from dsrl_torchrl.evaluation.curve_checks import curve_warnings
from dsrl_torchrl.training.metrics_log import read_metrics
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.cli.steps.action_magnitude import settle_action_magnitude
from dsrl_torchrl.cli.steps.base import base
from dsrl_torchrl.cli.steps.offline_data import offline_data
from dsrl_torchrl.cli.steps.stage1 import stage1
from dsrl_torchrl.training.latent_networks import save_actor
from dsrl_torchrl.training.online import train_stage2


def stage2(run: Run) -> None:
    """Steers the base policy online; the learned actor goes to ``stage2/``."""
    artifact = run.stage2_artifact
    if artifact.exists:
        run.say(f"stage 2: {artifact.folder} (exists)")
        return
    if run.algorithm.needs_stage1 and not run.stage1_artifact.exists:
        stage1(run)
    run.refuse_unfinished(artifact)
    metrics = run.folder / "metrics.csv"
    policy = base(run)
    settle_action_magnitude(run, policy)
    env = make_latent_env(run.cfg, policy)
    try:
        offline = None
        if run.algorithm.offline_fraction > 0:
            offline = offline_data(run, env, with_noise=not run.algorithm.noise_aliasing)
        make_worker_env = None
        if run.cfg.collector.overlap:
            workers = max(1, run.cfg.collector.num_workers - 1)  # one core stays with the learner
            make_worker_env = partial(make_latent_env, run.cfg, policy, workers=workers)
            env.close(raise_if_closed=False)  # from here on it only describes the one in the collecting process
            run.set_threads()
        artifact.begin()
        run.save_config()
        with run.metrics_log(metrics, "env_steps") as make_log:
            result = train_stage2(
                env,
                run.algorithm,
                run.networks,
                seed=run.cfg.seed,
                folder=artifact.folder,
                stage1=run.stage1_artifact.folder if run.algorithm.needs_stage1 else None,
                offline=offline,
                make_worker_env=make_worker_env,
                resume=run.cfg.resume,
                make_log=make_log,
                progress=run.cfg.progress,
            )
    finally:
        env.close(raise_if_closed=False)
    save_actor(result.actor, artifact.folder)
    counts = {name: getattr(result, name) for name in ("env_steps", "macro_steps", "updates", "wall_seconds")}
    artifact.finish(**counts)
    for warning in curve_warnings(read_metrics(metrics), env.noise_layout.dim):
        run.say(f"warning: {warning}")
    run.say(f"stage 2: {result.env_steps} env steps, {result.updates} updates, in {artifact.folder}")
