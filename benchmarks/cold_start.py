"""Why DSRL-NA from a cold start loses what the base policy can do, and what cures it: one factor at a time.

    dsrl base task=pick_cube
    python -m benchmarks cold_start base_policy.load.folder=runs/pick_cube-seed0/base

Every variant starts from random networks and the same base policy and makes the same number of env steps. The table
gives the running training success at the end of each third (last 50 episodes) and the success on resets of its own,
with Wilson intervals. Other words are Hydra overrides; ``--variants a,b`` chooses some, ``--seed`` the training seed.
Results are added to ``--results``, by default ``benchmarks/results/cold_start.json``, as each variant ends.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dsrl_torchrl.agents import DSRLAWMLE, DSRLNA
from dsrl_torchrl.cli.auto import settle_machine
from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.latent_env import make_latent_env
from dsrl_torchrl.collect.rollouts import collect_rollouts
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.evaluation.rates import make_rate
from dsrl_torchrl.files import write_json
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.networks.config import NetworkConfig
from dsrl_torchrl.networks.encoders import StateEncoder
from dsrl_torchrl.policies import load_policy
from dsrl_torchrl.training.metrics_log import MetricsLog
from dsrl_torchrl.training.online import OnlineConfig, train_online

RESULTS = Path(__file__).parent / "results" / "cold_start.json"
SUCCESS = "env/success_running"
BASE = "base policy in its rollouts"
EVALUATION_SEEDS = range(6_000, 6_060)
ENV_STEPS = 12_000
ROLLOUT_ENV_STEPS = 30_000

#: As the method is written down, without any of the guards: agent, loop, networks.
NAIVE = {"critic_only_updates": 0, "actor_average": 0.0, "alpha_init": 0.01, "backup": "min"}
NAIVE_LOOP = {"total_env_steps": ENV_STEPS, "warmup_env_steps": 1_000, "utd": 4.0, "offline_fraction": 0.0}
NAIVE_NETWORKS: dict[str, Any] = {
    "num_critics": 2,
    "num_cells": (128, 128, 128),
    "layer_norm": False,
    "chunk_gain": 1.0,
    "encoders": {"state": partial(StateEncoder, fourier_bands=())},
}

#: What each variant changes of the naive one: options of the agent, of the loop and of the networks, by their names.
VARIANTS: dict[str, dict[str, Any]] = {
    "naive": {},
    "critic first": {"critic_only_updates": 3_000},
    "offline rollouts": {"offline_fraction": 0.5},
    "normalised critics": {"layer_norm": True},
    "wide critics": {"num_cells": (256, 256, 256)},
    "larger temperature": {"alpha_init": 0.05},
    "scaled chunk": {"chunk_gain": 5.0},
    "fewer updates": {"utd": 1.0},
    "mean backup": {"backup": "mean"},
    "five critics": {"backup": "mean", "num_critics": 5},
}
EVERY_UPDATE = {"utd": 1.0, "actor_interval": 1, "distillation_interval": 1, "actor_batch_size": 256}
#: Variants whose agent is DSRL-AW-MLE, which has options of its own.
PRIOR_CANDIDATES: dict[str, dict[str, Any]] = {
    "prior-candidate actor": {**EVERY_UPDATE, "decoded_pairs": 0},
    "executed noises": EVERY_UPDATE,
}
SHIPPED = "shipped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = [*VARIANTS, *PRIOR_CANDIDATES, SHIPPED]
    parser.add_argument("--variants", default=",".join(names), help="comma-separated names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. base_policy.load.folder=<folder>")


def main(arguments: argparse.Namespace) -> None:
    from benchmarks.methods.cells import commit  # not at the top: no other benchmark needs it

    words = ["task=pick_cube", "base_policy=checkpoint", "collector.num_workers=1", *arguments.overrides]
    config, _ = settle_machine(compose(words), None)
    env = make_latent_env(config, load_policy(config.base_policy.load["folder"]))
    prior, keys = PriorNoise(env.latent_dim), env.decoder.base_policy.in_keys
    rollouts, episodes = collect_rollouts(env, prior, ROLLOUT_ENV_STEPS, seed=777, observation_keys=keys)
    results = add_base(arguments.results, make_rate(episodes.successes).__dict__)
    for name in arguments.variants.split(","):
        agent, loop, changes = _variant(name, env, arguments.seed)
        outcome = _train(env, agent, loop, rollouts, arguments.seed)
        results[f"{name}, seed {arguments.seed}"] = {"changes": changes, **outcome, "commit": commit()}
        write_json(arguments.results, results)
        print(f"{name:<24}{outcome['running_success']}  {outcome['evaluation']}", flush=True)


def add_base(path: Path, rate: dict[str, Any]) -> dict[str, Any]:
    """The results there so far, with the success of the base policy's rollouts, which says whose they are.

    Raises:
        UserError: they are of another base policy.
    """
    results = json.loads(path.read_text()) if path.exists() else {}
    before = results.get(BASE, rate)
    if before != rate:
        raise UserError(
            f"{path} has results of another base policy ({before['value']:.3f} of {before['n']} rollouts, here "
            f"{rate['value']:.3f} of {rate['n']}): choose another file by --results"
        )
    return results | {BASE: rate}


def _variant(name: str, env, seed: int):
    """Agent and loop of a variant, and what it changes."""
    torch.manual_seed(seed)
    if name == SHIPPED:
        loop = OnlineConfig(total_env_steps=ENV_STEPS, warmup_env_steps=NAIVE_LOOP["warmup_env_steps"])
        return DSRLAWMLE(env), loop, "all defaults"
    changes = VARIANTS[name] if name in VARIANTS else PRIOR_CANDIDATES[name]
    cls = DSRLNA if name in VARIANTS else DSRLAWMLE

    def options(declared: Any, naive: dict[str, Any]) -> Any:
        merged = naive | changes
        return declared(**{option: merged[option] for option in merged if option in declared.model_fields})

    agent = cls(env, options(cls.Config, NAIVE), options(NetworkConfig, NAIVE_NETWORKS))
    return agent, options(OnlineConfig, NAIVE_LOOP), changes


def _train(env, agent, loop: OnlineConfig, rollouts, seed: int) -> dict[str, Any]:
    log = MetricsLog()
    offline = rollouts if loop.offline_fraction else None
    with tempfile.TemporaryDirectory() as folder:
        train_online(env, agent, loop, seed=seed, folder=Path(folder), offline=offline, log=log, progress=False)
    curve = {int(row["env_steps"]): row[SUCCESS] for row in log.rows if SUCCESS in row}
    thirds = [max(step for step in curve if step <= ENV_STEPS * third // 3 + 500) for third in (1, 2, 3)]
    rate = evaluate(env, agent.kept_policy, EVALUATION_SEEDS).success_once
    return {"running_success": [round(curve[step], 2) for step in thirds], "evaluation": rate.__dict__}
