"""One env step of ManiSkill on the CPU: plain, one env at a time, against envs that share one run of its Python.

Random actions from the same starts, one process, no TorchRL. The times are of an env step: a turn of either side steps
as often, over all of its envs.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.chart import draw
from benchmarks.ratios import Report, interleave, ratio, statistic
from dsrl_torchrl.envs.maniskill_task import make_gym_env

SMOKE = {"tasks": ["PickCube-v1"], "control_modes": ["pd_ee_delta_pos"], "envs": [2], "env_steps": 8, "repeats": 1}

GOAL = ">= 2.5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", default=["PickCube-v1", "PushCube-v1", "LiftPegUpright-v1"])
    parser.add_argument("--control-modes", nargs="+", default=["pd_ee_delta_pos", "pd_ee_delta_pose"])
    parser.add_argument("--envs", nargs="+", type=int, default=[8], help="that share one run of the Python")
    parser.add_argument("--env-steps", type=int, default=160, help="in a turn, over all envs")


def main(arguments: argparse.Namespace) -> None:
    report = Report("simulator", arguments.out)
    for task in arguments.tasks:
        for control_mode in arguments.control_modes:
            sides = {"plain": Steps(task, control_mode, 1, arguments.env_steps)}
            for envs in arguments.envs:
                sides[f"batch of {envs}"] = Steps(task, control_mode, envs, arguments.env_steps)
            times = interleave(sides, arguments.repeats)
            case = f"{task}, {control_mode}"
            for name in sides:
                cpu = [1e3 * s / arguments.env_steps for s in times.cpu[name]]
                report.value(f"{case}: {name}", statistic(cpu), "CPU ms an env step")
            for envs in arguments.envs:
                name = f"batch of {envs}"
                report.ratio(f"{case}: plain / {name}", ratio(times, "plain", name), GOAL)
                report.ratio(f"{case}: plain / {name}, CPU", ratio(times.cpu, "plain", name), GOAL)
            for side in sides.values():
                side.close()
    report.write()
    draw(report, "An env step of ManiSkill")


class Steps:
    """A turn: ``env_steps`` steps over all envs, from fresh starts."""

    def __init__(self, task: str, control_mode: str, envs: int, env_steps: int) -> None:
        self.env: Any = make_gym_env(
            task, control_mode=control_mode, num_envs=envs, sim_backend="physx_cpu", max_episode_steps=10_000
        )
        self.steps, self.seeds = env_steps // envs, list(range(envs))
        shape = (self.steps, envs, *self.env.unwrapped.single_action_space.shape)
        self.actions = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1
        self.env.reset(seed=self.seeds)

    def __call__(self) -> None:
        for action in self.actions:
            self.env.step(action)

    def close(self) -> None:
        self.env.close()
