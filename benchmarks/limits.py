"""What limits stage 2 at so many envs and machines: a simulation of its rounds, from costs measured here.

In a round every worker simulates one macro step of its envs while the learner makes the updates of the round before;
the round ends with the slowest of them (``train_online``). So a round takes

    act + max(max over workers of (envs * act_horizon * step * noise), UTD * envs of all workers * update) + message

The noise of a worker's time is log-normal with mean 1. Envs of a worker share one run of the simulator's Python: a step
of one of E costs ``fixed / E + each``, fitted to one and eight envs. Nodes have a worker per core; the learner has a
machine of its own, except on one node, where it takes one of the cores. Not in the model: resets, checkpoints, start-up
and a network that is shared with others.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.chart import draw
from benchmarks.latent_update import make_loop
from benchmarks.ratios import Report, interleave, statistic
from benchmarks.setting import Setting
from benchmarks.simulator import Steps

SMOKE = {"env_id": None, "rounds": 20, "repeats": 1, "width": 8}

HORIZON = 8
#: Processes of one machine behind pipes; Ray's objects over a network of 1 ms and 1 GB/s.
PIPE_SECONDS, RAY_SECONDS, BYTES_PER_SECOND = 0.3e-3, 5e-3, 1e9


@dataclass(frozen=True)
class Costs:
    """Seconds on one core.

    Attributes:
        step_fixed: of the simulator's Python in an env step, shared by the envs of a worker.
        step_each: of physics and the rest, of every env.
        act_fixed, act_each: of the latent policy and the decode, likewise.
        update: of one update.
        weights: bytes of the latent policy, which Ray sends before every macro step.
    """

    step_fixed: float
    step_each: float
    act_fixed: float
    act_each: float
    update: float
    weights: int


@dataclass(frozen=True)
class Machines:
    """Workers that simulate beside one learner."""

    name: str
    workers: int
    envs: int  #: of each worker
    nodes: int = 1

    @property
    def all_envs(self) -> int:
        return self.workers * self.envs


SYSTEMS = [
    Machines("1 env", 1, 1),
    Machines("16 envs, 2 workers", 2, 8),
    Machines("256 envs, 32 workers", 32, 8),
    Machines("1 node of 16 cores", 15, 8),
    Machines("4 nodes", 64, 8, nodes=4),
    Machines("64 nodes", 1024, 8, nodes=64),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env-id", default="PickCube-v1")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--utds", nargs="+", type=float, default=[1.0, 0.1])
    parser.add_argument("--learners", nargs="+", type=float, default=[1.0, 0.1], help="an update's time, times this")
    parser.add_argument("--spread", type=float, default=0.15, help="coefficient of variation of a worker's time")
    parser.add_argument("--rounds", type=int, default=2_000)


def main(arguments: argparse.Namespace) -> None:
    report = Report("limits", arguments.out)
    costs = measure(report, arguments)
    for learner in arguments.learners:
        for utd in arguments.utds:
            kind = f"UTD {utd:g}, update x {learner:g}"
            speeds = {}
            for system in SYSTEMS:
                found = simulate(costs, system, utd, learner, arguments.spread, arguments.rounds)
                speeds[system.name] = found["env_steps_per_second"]
                report.value(f"{system.name}: {kind}", statistic([speeds[system.name]]), "env steps/s")
                shares = f"workers busy {found['workers_busy']:.0%}, learner {found['learner_busy']:.0%}"
                print(f"  {found['limit']} limits; {shares}")
            for name, speed in speeds.items():
                report.ratio(f"{name}: against 1 env, {kind}", statistic([speed / speeds["1 env"]]))
    report.write()
    draw(report, "Env steps per second against one env's, by the model of rounds")


def simulate(
    costs: Costs, system: Machines, utd: float, learner: float = 1.0, spread: float = 0.0, rounds: int = 1
) -> dict[str, Any]:
    """Throughput and shares of time of the average round."""
    envs, noise = system.all_envs, np.random.default_rng(0)
    sigma = np.sqrt(np.log1p(spread**2))
    factors = np.exp(sigma * noise.standard_normal((rounds, system.workers)) - sigma**2 / 2)
    collecting = HORIZON * (costs.step_fixed + system.envs * costs.step_each) * factors  # (rounds, workers)
    on_ray = system.nodes > 1
    if on_ray:  # each worker decodes its own, side by side
        collecting += costs.act_fixed + system.envs * costs.act_each
    acting = 0.0 if on_ray else costs.act_fixed + envs * costs.act_each
    message = system.workers * PIPE_SECONDS
    if on_ray:
        message = RAY_SECONDS + system.workers * costs.weights / BYTES_PER_SECOND
    updating = utd * envs * costs.update * learner
    slowest = collecting.max(axis=1)
    seconds = acting + message + np.maximum(slowest, updating)
    parts = {"acting": acting, "messages": message, "collecting": slowest.mean(), "updating": updating}
    limit = max(parts, key=lambda name: parts[name])
    return {
        "env_steps_per_second": envs * HORIZON / float(seconds.mean()),
        "workers_busy": float(collecting.mean() / seconds.mean()),
        "learner_busy": float((updating + acting) / seconds.mean()),
        "limit": limit,
    }


def measure(report: Report, arguments: argparse.Namespace) -> Costs:
    """The costs of this machine, in CPU seconds."""
    setting = Setting(num_critics=5, width=arguments.width)
    loop = make_loop(setting, "dsrl_aw_mle", 2_000)
    acts = {n: _acting(setting, n) for n in (1, 64)}
    sides = {"update": partial(loop.run, 8)} | {f"act {n}": act for n, act in acts.items()}
    steps = {1: 16, 8: 64}
    if arguments.env_id is not None:
        for envs, env_steps in steps.items():
            sides[f"step {envs}"] = Steps(arguments.env_id, "pd_ee_delta_pos", envs, env_steps)
    times = interleave(sides, arguments.repeats)
    seconds = {name: statistic(times.cpu[name])["median"] for name in sides}
    seconds["update"] /= 8
    one, eight = (seconds.get(f"step {envs}", 0.0) / (env_steps / envs) for envs, env_steps in steps.items())
    each, act_each = (eight - one) / 7, (seconds["act 64"] - seconds["act 1"]) / 63
    weights = sum(parameter.nbytes for parameter in loop.agent.policy.parameters())
    costs = Costs(one - each, each, seconds["act 1"] - act_each, act_each, seconds["update"], weights)
    for name, value in asdict(costs).items():
        report.value(name, statistic([value if name == "weights" else 1e3 * value]), "B" if name == "weights" else "ms")
    return costs


def _acting(setting: Setting, envs: int):
    env = setting.env(envs)
    policy, td = setting.agent("dsrl_aw_mle", env).policy, env.reset()

    @torch.no_grad()
    def act() -> None:
        env.decoder.decode(td, policy(td)["action"])

    return act
