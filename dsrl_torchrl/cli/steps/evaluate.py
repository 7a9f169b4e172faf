"""``dsrl eval``: every policy of the run on the same held-out resets."""

from __future__ import annotations

import json

from tensordict.nn import TensorDictModuleBase

from dsrl_torchrl.cli.configured import make_latent_env
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.evaluate import Evaluation, evaluate, held_out_seeds
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.policies import BasePolicy
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.cli.steps.action_magnitude import settle_action_magnitude
from dsrl_torchrl.cli.steps.base import base
from dsrl_torchrl.evaluation.summary import write_summary
from dsrl_torchrl.training.latent_networks import load_actor
from dsrl_torchrl.evaluation.videos import FrameRecorder, record_videos

#: By name in the table: the module and whether its mode is used.
Policies = dict[str, tuple[TensorDictModuleBase, bool]]


def evaluate_run(run: Run) -> dict:
    """Evaluates base, stage 1 and stage 2 on the same held-out resets; writes ``summary.json`` and the figures."""
    policy = base(run)
    settle_action_magnitude(run, policy)
    # Episode returns are plain sums, and episodes go on after a success to see whether it lasts.
    env = make_latent_env(run.cfg, policy, gamma=1.0, terminate_on_success=False)
    policies = _policies(run, env)
    seeds = held_out_seeds(run.cfg.evaluation.episodes)
    results: dict[str, Evaluation] = {}
    try:
        for name, (module, deterministic) in policies.items():
            label = f"evaluate {name}" if run.cfg.progress else None
            results[name] = evaluate(env, module, seeds, deterministic=deterministic, progress=label)
    finally:
        env.close()
    _record_videos(run, policy, policies, seeds)
    return write_summary(
        run.folder,
        results,
        stage1=run.stage1_artifact.facts if "stage1" in results else {},
        stage2=run.stage2_artifact.facts,
        config_hash=run.config_hash,
        title=f"{run.cfg.task.name}, seed {run.cfg.seed}",
        say=run.say,
    )


def evaluated(run: Run) -> bool:
    """Whether the summary of these policies on these resets exists."""
    path = run.folder / "summary.json"
    if not path.exists():
        return False
    summary = json.loads(path.read_text())
    rates = summary["evaluations"].get("stage2_stochastic", {"success_once": {"n": 0}})
    same_policies = summary["config_hash"] == run.config_hash
    return same_policies and rates["success_once"]["n"] == run.cfg.evaluation.episodes


def _policies(run: Run, env: LatentActionEnv) -> Policies:
    latent_dim = env.noise_layout.dim
    policies: Policies = {
        "base_prior": (PriorNoise(latent_dim), False),
        "base_zero": (PriorNoise(latent_dim, 0.0), True),
    }
    if run.algorithm.needs_stage1 and run.stage1_artifact.exists:
        actor = load_actor(env, run.networks, run.stage1_artifact.folder)
        # The mode too: what taking it gains is no merit of stage 2.
        policies |= {"stage1": (actor, False), "stage1_deterministic": (actor, True)}
    if run.stage2_artifact.exists:
        actor = load_actor(env, run.networks, run.stage2_artifact.folder)
        policies |= {"stage2_stochastic": (actor, False), "stage2_deterministic": (actor, True)}
    return policies


def _record_videos(run: Run, base_policy: BasePolicy, policies: Policies, seeds: list[int]) -> None:
    count, options = run.cfg.evaluation.videos, run.config["task"]["render"]
    if count == 0:
        return
    if options is None:
        run.say(f"no videos: {run.cfg.task.name} has no renderer")
        return
    recorder = FrameRecorder()
    try:
        env = make_latent_env(run.cfg, base_policy, workers=1, below=[recorder], **options)
    except UserError as error:
        run.say(f"no videos: {error}")
        return
    for name, (module, deterministic) in policies.items():
        folder = run.folder / "videos"
        record_videos(env, recorder, module, seeds[:count], folder, name, deterministic=deterministic)
    env.close()
    run.say(f"videos: {run.folder / 'videos'}")
