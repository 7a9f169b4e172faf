"""Why DSRL-NA from a cold start loses what the base policy can do, and what cures it: one factor at a time.

    dsrl base task=pick_cube
    python -m benchmarks cold_start base_policy.checkpoint=runs/pick_cube-seed0/base

Every variant starts from random networks and the same base policy and makes the same number of env steps. The table
gives the running training success at the end of each third (last 50 episodes) and the success on resets of its own,
with Wilson intervals. Other words are Hydra overrides; ``--variants a,b`` chooses some, ``--seed`` the training seed.
Results are added to ``benchmarks/results/cold_start.json`` as each variant ends.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsrl_torchrl.cli.main import compose
from dsrl_torchrl.cli.configured import make_latent_env
from dsrl_torchrl.evaluation.curve_checks import SUCCESS
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.policies import load_policy
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.cli.artifacts import write_json
from dsrl_torchrl.training.network_config import NetworkConfig
from dsrl_torchrl.collect.rollouts import collect_rollouts
from dsrl_torchrl.training.online import train_stage2
from dsrl_torchrl.training.stage2_config import Stage2Config

RESULTS = Path(__file__).parent / "results" / "cold_start.json"
EVALUATION_SEEDS = range(6_000, 6_060)
ENV_STEPS = 12_000
ROLLOUT_ENV_STEPS = 30_000

#: As the method is written down, without any of the guards.
NAIVE = {
    "total_env_steps": ENV_STEPS,
    "warmup_env_steps": 1_000,
    "utd": 4,
    "critic_only_updates": 0,
    "offline_fraction": 0.0,
    "behaviour_fraction": 0.0,
    "alias_samples": 0,
    "target_interval": 1,
    "actor_average": 0.0,
    "aw_mle": False,
    "actor_interval": 1,
    "actor_batch_size": 256,
    "distillation_interval": 1,
    "alpha_init": 0.01,
    "backup": "min",
    "init_actor": False,
    "init_critics": False,
}
NAIVE_NETWORKS = {
    "num_critics": 2,
    "layer_norm": False,
    "fourier_bands": (),
    "chunk_gain": 1.0,
    "num_cells": (128, 128, 128),
}

#: What each variant changes of the naive one, in the update and in the networks.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "naive": ({}, {}),
    "critic first": ({"critic_only_updates": 3_000}, {}),
    "offline rollouts": ({"offline_fraction": 0.5}, {}),
    "executed noises": ({"behaviour_fraction": 0.5, "alias_samples": 16}, {}),
    "normalised critics": ({}, {"layer_norm": True}),
    "wide critics": ({}, {"num_cells": (256, 256, 256)}),
    "larger temperature": ({"alpha_init": 0.05}, {}),
    "scaled chunk": ({}, {"chunk_gain": 5.0}),
    "fewer updates": ({"utd": 1}, {}),
    "prior-candidate actor": ({"utd": 1, "aw_mle": True}, {}),
    "mean backup": ({"backup": "mean"}, {}),
    "five critics": ({"backup": "mean"}, {"num_critics": 5}),
    "shipped": (
        {
            "critic_only_updates": 300,
            "utd": 1,
            "offline_fraction": 0.25,
            "behaviour_fraction": 0.5,
            "alpha_init": 0.03,
            "alias_samples": 16,
            "target_interval": 8,
            "aw_mle": True,
            "actor_interval": 4,
            "actor_batch_size": 64,
            "distillation_interval": 2,
            "actor_average": 0.99,
            "backup": "mean",
        },
        {"num_critics": 5, "layer_norm": True, "fourier_bands": (0.5, 1.0), "chunk_gain": 5.0},
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. base_policy.checkpoint=<folder>")


def main(arguments: argparse.Namespace) -> None:
    run = Run(compose(["task=pick_cube", "collector.num_workers=1", *arguments.overrides]))
    env = make_latent_env(run.cfg, load_policy(run.cfg.base_policy.checkpoint))
    rollouts, base = collect_rollouts(env, PriorNoise(env.noise_layout.dim), ROLLOUT_ENV_STEPS, seed=777)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results["base policy in its rollouts"] = base.__dict__
    for name in arguments.variants.split(","):
        changes, network_changes = VARIANTS[name]
        config = replace(Stage2Config(**NAIVE), **changes)
        networks = NetworkConfig(**(NAIVE_NETWORKS | network_changes))
        outcome = _train(env, config, networks, rollouts, arguments.seed)
        results[f"{name}, seed {arguments.seed}"] = {"changes": changes | network_changes, **outcome}
        write_json(RESULTS, results)
        print(f"{name:<20}{outcome['running_success']}  {outcome['evaluation']}", flush=True)


def _train(env, config: Stage2Config, networks: NetworkConfig, rollouts, seed: int) -> dict[str, Any]:
    curve: dict[int, float] = {}

    def make_log(_):
        return lambda step, metrics: curve.update({step: metrics[SUCCESS]} if SUCCESS in metrics else {})

    offline = rollouts.exclude("action") if config.offline_fraction else None
    with tempfile.TemporaryDirectory() as folder:
        result = train_stage2(
            env, config, networks, seed=seed, folder=Path(folder), offline=offline, make_log=make_log, progress=False
        )
    thirds = [max(step for step in curve if step <= ENV_STEPS * third // 3 + 500) for third in (1, 2, 3)]
    rate = evaluate(env, result.actor, EVALUATION_SEEDS).success_once
    return {"running_success": [round(curve[step], 2) for step in thirds], "evaluation": rate.__dict__}
