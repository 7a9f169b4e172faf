"""Offline RL by a Gaussian policy on raw action chunks of LiftPegUpright: what fails, and by which of its own numbers.

    dsrl stage1 experiment=lift_peg_upright name=lift stage2.total_env_steps=0   # demonstrations, base policy, rollouts
    python -m benchmarks offline_failures --data runs/lift

Every method learns from the same offline data and is evaluated on the same held-out resets, sampled and by its mode;
its run folder lies beside the first one. ``--methods a,b`` chooses some; other words are Hydra overrides. Results are
added to ``benchmarks/results/offline_failures.json`` as each method ends, and drawn from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dsrl_torchrl import seeds
from dsrl_torchrl.agents import TD3BC
from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.latent_env import make_latent_env
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.files import write_json
from dsrl_torchrl.latent_env.prior_noise import make_prior
from dsrl_torchrl.training.metrics_log import read_metrics

RESULTS = Path(__file__).parent / "results" / "offline_failures.json"
COMMON = [
    "experiment=lift_peg_upright",
    "stage2.total_env_steps=0",
    "stage1.check_episodes=0",
    "stage1.log_updates=50",
    "progress=false",
]
#: Sizes as usual in offline RL; the policies are as wide as the base policy's half.
SIZES = ["networks.num_cells=[256,256,256]", "networks.num_critics=2"]
#: Each method's overrides. Cloning is AWR whose weights are all 1.
METHODS: dict[str, list[str]] = {
    "SAC": ["algorithm=offline_sac", "algorithm.alpha_init=1.0"],
    "TD3+BC": ["algorithm=td3_bc"],
    "AWR": ["algorithm=awr"],
    "IQL": ["algorithm=iql"],
    "IQL with entropy bonus": ["algorithm=iql", "algorithm.alpha_init=1.0"],
    "Gaussian cloning": ["algorithm=awr", "algorithm.weight_temperature=1e8"],
}
#: Not learned here: the flow policy that was cloned from the same demonstrations.
FLOW = "flow cloning"
SHARED = ["demos", "base", "stage1/rollouts.json", "stage1/rollouts.safetensors"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="run folder with demos, base and stage1's rollouts")
    parser.add_argument("--methods", default=",".join([FLOW, *METHODS]), help="comma-separated names")
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--episodes", type=int, default=100, help="held-out resets")
    parser.add_argument("--draw", type=Path, help="draw the results that are there, to this file, and do nothing else")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. seed=1")


def main(arguments: argparse.Namespace) -> None:
    if arguments.draw is not None:
        from benchmarks.offline_figure import draw

        draw(_results(), arguments.draw)
        return
    for name in arguments.methods.split(","):
        words = METHODS["SAC"] if name == FLOW else METHODS[name]
        slug = name.lower().replace(" ", "_").replace("+", "_")
        folder = [f"output={arguments.data.parent}", f"name={arguments.data.name}_{slug}"]
        budget = [f"stage1.updates={arguments.updates}"]
        config = compose([*COMMON, *SIZES, *words, *folder, *budget, *arguments.overrides])
        if name != FLOW:
            _share(arguments.data, config.folder)
        outcome = _outcome(name, config, arguments.data, arguments.episodes)
        found = _results() | {name: outcome}  # read now: another process may have added some
        write_json(RESULTS, {name: found[name] for name in (FLOW, *METHODS) if name in found})
        print(f"{name:<24}{outcome['sampled']['success_once']}", flush=True)


def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _share(data: Path, folder: Path) -> None:
    """Gives a run folder the demonstrations, base policy and rollouts of another."""
    for part in SHARED:
        source, target = data / part, folder / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)


def _outcome(name: str, config: RunConfig, data: Path, episodes: int) -> dict[str, Any]:
    """Trains where nothing is there, and measures."""
    if name == FLOW:  # its env is that of the raw chunks, too: the errors are in the same unit
        config = config.replace(name=data.name)
    outcome: dict[str, Any] = {"seed": config.seed, "episodes": episodes}
    with Run(config) as run:
        if name != FLOW:
            run.stage1()
            outcome |= {"updates": config.stage1.updates, "curves": _curves(config.folder / "stage1" / "metrics.csv")}
            outcome["seconds"] = run.folder.stage1.facts["wall_seconds"]
        demonstrations = run._demonstrations()
        assert demonstrations is not None
        env = make_latent_env(run.config, run.base(), workers=1, gamma=1.0, terminate_on_success=False)
        try:
            agent = run.agent(env, run.config.offline_algorithm)
            if name != FLOW:
                agent.load(run.folder.stage1.folder)
            sampled = make_prior(env.decoder) if name == FLOW else agent.kept_policy
            mode = make_prior(env.decoder, 0.0) if name == FLOW else agent.kept_policy
            outcome["chunk_error"] = chunk_errors(sampled, mode, demonstrations, env.decoder.base_policy)
            if isinstance(agent, TD3BC) and name != FLOW:
                outcome["pull"] = pull_of_q(agent, run.offline_data())
            starts = seeds.first(seeds.HELD_OUT, episodes)
            for row, policy, deterministic in (("sampled", sampled, False), ("mode", mode, True)):
                outcome[row] = evaluate(env, policy, starts, deterministic=deterministic).to_dict()
        finally:
            env.close()
    return outcome


def _curves(path: Path) -> dict[str, list[float | None]]:
    rows = read_metrics(path)
    names = {name for row in rows for name in row if name.split("/")[0] in ("q_noise", "actor", "updates")}
    return {name: [row.get(name, None) for row in rows] for name in sorted(names)}


@torch.no_grad()
def chunk_errors(
    sampled: TensorDictModuleBase, mode: TensorDictModuleBase, demonstrations: TensorDictBase, policy: Any
) -> dict[str, float]:
    """Mean squared error of an action, of the demonstrations ``[n]``, in half ranges, by sample and by mode."""
    some = demonstrations[torch.randperm(len(demonstrations), generator=torch.Generator().manual_seed(0))[:2048]]
    wanted = policy.encode_chunk(some["next", "action_chunk"])
    errors = {}
    for name, module, kind in (
        ("sampled", sampled, ExplorationType.RANDOM),
        ("mode", mode, ExplorationType.DETERMINISTIC),
    ):
        with torch.random.fork_rng(), set_exploration_type(kind):
            torch.manual_seed(0)
            action = module(some.select("observation"))["action"]
        errors[name] = float((action - wanted).square().mean())
    errors["variance"] = float(wanted.var(0).mean())  # of the demonstrations' own: what the best constant makes
    return errors


def pull_of_q(agent: TD3BC, data: TensorDictBase) -> float:
    """``‖λ ∇_a Q‖ / ‖∇_a cloning‖`` at the policy's actions, of 2048 transitions of ``data`` ``[n]``."""
    batch = agent.encode(data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:2048]])
    action = agent.actor(batch.copy())["action"].detach().requires_grad_()
    critic, params = agent.loss.qvalue_network, agent.loss.qvalue_network_params
    q = critic.ensemble(params, batch, action)[0]
    lam = agent.config.alpha / q.abs().mean().detach()
    (pull,) = torch.autograd.grad(lam * q.mean(), action)
    cloning = (action - batch["action"]).square().mean()
    (push,) = torch.autograd.grad(cloning, action)
    return float(pull.norm() / push.norm())
