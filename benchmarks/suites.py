"""A macro step of Meta-World in the latent env: by state, with a picture at its end, and with one at every step.

Prior noise, a flow policy that reads the state, one process, episodes that never end: resets are not in the numbers.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.chart import draw
from benchmarks.ratios import Report, interleave, ratio, statistic
from dsrl_torchrl import LatentActionEnv, make_macro_env
from dsrl_torchrl.envs.metaworld import MetaWorldEnv
from dsrl_torchrl.policies import FlowPolicy

SMOKE = {"tasks": ["reach-v3"], "envs": 2, "macro_steps": 1, "image_size": 16, "repeats": 1}
ACT_HORIZON = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", default=["push-v3"])
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--macro-steps", type=int, default=5, help="in a turn")
    parser.add_argument("--image-size", type=int, default=64)


def main(arguments: argparse.Namespace) -> None:
    report = Report("suites", arguments.out)
    env_steps = arguments.envs * arguments.macro_steps * ACT_HORIZON
    for task in arguments.tasks:
        size = arguments.image_size
        sides = {
            "state": MacroSteps(task, arguments, None),
            f"{size}² at its end": MacroSteps(task, arguments, size),
            f"{size}² at every step": MacroSteps(task, arguments, size, lazy=False),
        }
        times = interleave(sides, arguments.repeats)
        for name, side in sides.items():
            report.value(
                f"{task}: {name}", statistic([env_steps / s for s in times.cpu[name]]), "env steps a CPU second"
            )
            side.close()
        names = list(sides)
        report.ratio(f"{task}: every picture / one a macro step, CPU", ratio(times.cpu, names[2], names[1]), ">= 3")
    report.write()
    draw(report, "Macro steps of Meta-World")


class MacroSteps:
    """A turn: some macro steps of all envs, on from where the last turn was."""

    def __init__(self, task: str, arguments: argparse.Namespace, image_size: int | None, lazy: bool = True) -> None:
        base = MetaWorldEnv(task, arguments.envs, 1_000_000, terminate_on_success=False, image_size=image_size)
        macro = make_macro_env(base, act_horizon=ACT_HORIZON, gamma=0.98)
        macro.transform[-1].skip_images = lazy and macro.transform[-1].skip_images
        policy = FlowPolicy(base.observation_spec["observation"].shape[-1], 4, ACT_HORIZON).freeze()
        self.env, self.steps = LatentActionEnv(macro, policy, act_horizon=ACT_HORIZON), arguments.macro_steps
        self.now = self.env.reset(seed=list(range(arguments.envs)))
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> None:
        for _ in range(self.steps):
            noise = torch.randn(self.env.action_spec.shape, generator=self.generator).clamp(-1.5, 1.5)
            self.now = self.env.step(self.now.set("action", noise))["next"]

    def close(self) -> None:
        self.env.close()
