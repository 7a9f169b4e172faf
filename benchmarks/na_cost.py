"""What DSRL-NA costs against DSRL-SAC: a round of stage 2 without its envs.

A round stores 8 new macro steps and makes 8 updates (UTD 1). ``naive`` decodes a fresh noise for the distillation of
every update and another for its TD target; ``shipped`` is ``conf/algorithm/dsrl_na.yaml``, whose alias pairs are
decoded when a macro step is stored, which the round includes, and which mixes offline data into every batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.chart import draw
from benchmarks.floor import Product, na_products, sac_products
from benchmarks.latent_update import LatentUpdateLoop, make_loop
from benchmarks.ratios import Report, interleave, ratio, statistic
from benchmarks.setting import Setting, random_transitions

SMOKE = {"cells": ["2x8"], "bases": ["8x2"], "rounds": 1, "transitions": 300, "repeats": 2}

GOAL = "<= 1.3"
SAC_ACTOR = ["algorithm.aw_mle=false", "algorithm.actor_interval=1", "algorithm.distillation_interval=1"]
NAIVE = [*SAC_ACTOR, "algorithm.offline_fraction=0", "algorithm.target_interval=1"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cells", nargs="+", metavar="NxWIDTH", default=["5x128", "2x256"], help="ensemble size x width"
    )
    parser.add_argument(
        "--bases",
        nargs="+",
        metavar="WIDTHxSTEPS",
        default=["256x3", "512x8"],
        help="flow policies: width of its three hidden layers x sampler steps",
    )
    parser.add_argument("--rounds", type=int, default=6, help="in a turn")
    parser.add_argument("--transitions", type=int, default=20_000, help="in the replay")


def main(arguments: argparse.Namespace) -> None:
    report = Report("na_cost", arguments.out)
    for cell in arguments.cells:
        critics, width = (int(number) for number in cell.split("x"))
        for base in arguments.bases:
            base_width, steps = (int(number) for number in base.split("x"))
            setting = Setting(num_critics=critics, width=width, base_width=base_width, sampler_steps=steps)
            _compare(report, setting, arguments)
    report.write()
    draw(report, "DSRL-NA against DSRL-SAC, per update")


def _compare(report: Report, setting: Setting, arguments: argparse.Namespace) -> None:
    naive = replace(setting, alias_samples=0)
    loops = {
        "SAC": make_loop(setting, setting.algorithm("dsrl_sac"), arguments.transitions),
        "naive NA": make_loop(naive, naive.algorithm("dsrl_na", *NAIVE), arguments.transitions),
        "NA, SAC's actor": make_loop(setting, setting.algorithm("dsrl_na", *SAC_ACTOR), arguments.transitions),
        "shipped NA": make_loop(setting, setting.algorithm("dsrl_na"), arguments.transitions),
    }
    sides = {
        name: lambda loop=loop: [_round(setting, loop) for _ in range(arguments.rounds)] for name, loop in loops.items()
    }
    times = interleave(sides, arguments.repeats)
    case = f"N={setting.num_critics} width={setting.width}, base 3x{setting.base_width}, {setting.sampler_steps} steps"
    updates = arguments.rounds * loops["SAC"].config.macro_steps_per_round
    for name, seconds in times.items():
        report.value(f"{case}: {name}", statistic([1e3 * s / updates for s in seconds]), "ms/update")
    # No update of these losses and sizes can come below this.
    report.ratio(
        f"{case}: arithmetic of NA / SAC, SAC's actor", statistic([_flops(na_products(setting), sac_products(setting))])
    )
    report.ratio(f"{case}: naive NA / SAC", ratio(times, "naive NA", "SAC"))
    report.ratio(f"{case}: NA / SAC, SAC's actor", ratio(times, "NA, SAC's actor", "SAC"), GOAL)
    report.ratio(f"{case}: shipped NA / SAC", ratio(times, "shipped NA", "SAC"), GOAL)


def _flops(products: Sequence[Product], others: Sequence[Product]) -> float:
    return sum(product.flops for product in products) / sum(product.flops for product in others)


def _round(setting: Setting, loop: LatentUpdateLoop) -> None:
    macro_steps = loop.config.macro_steps_per_round
    loop.collected(random_transitions(setting, macro_steps))
    loop.run(macro_steps)
