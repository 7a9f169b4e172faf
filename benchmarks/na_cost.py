"""What DSRL-NA costs against DSRL-SAC: a round of stage 2 without its envs.

A round stores 8 new macro steps and makes 8 updates (UTD 1). ``NA`` is the published algorithm: it decodes a fresh
noise for the distillation of every update and another for its TD target. ``AW-MLE`` is our default, whose pairs are
decoded when a macro step is stored, which the round includes, and which mixes offline data into every batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.chart import draw
from benchmarks.floor import Product, na_products, sac_products
from benchmarks.latent_update import LatentUpdateLoop, make_loop
from benchmarks.ratios import Report, interleave, ratio, statistic
from benchmarks.setting import Setting, random_transitions, two_sizes

SMOKE = {"cells": ["2x8"], "bases": ["8x2"], "rounds": 1, "transitions": 300, "repeats": 2}

GOAL = "<= 1.3"
MACRO_STEPS = 8  # in a round


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cells",
        nargs="+",
        type=two_sizes,
        metavar="NxWIDTH",
        default=["5x128", "2x256"],
        help="ensemble size x width",
    )
    parser.add_argument(
        "--bases",
        nargs="+",
        type=two_sizes,
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
    loops = {
        "SAC": make_loop(setting, "dsrl_sac", arguments.transitions),
        "NA": make_loop(setting, "dsrl_na", arguments.transitions, offline=False),
        "AW-MLE": make_loop(setting, "dsrl_aw_mle", arguments.transitions),
    }
    sides = {
        name: lambda loop=loop: [_round(setting, loop) for _ in range(arguments.rounds)] for name, loop in loops.items()
    }
    times = interleave(sides, arguments.repeats)
    case = f"N={setting.num_critics} width={setting.width}, base 3x{setting.base_width}, {setting.sampler_steps} steps"
    updates = arguments.rounds * MACRO_STEPS
    for name, seconds in times.items():
        report.value(f"{case}: {name}", statistic([1e3 * s / updates for s in seconds]), "ms/update")
    # No update of these losses and sizes can come below this.
    report.ratio(f"{case}: arithmetic of NA / SAC", statistic([_flops(na_products(setting), sac_products(setting))]))
    report.ratio(f"{case}: NA / SAC", ratio(times, "NA", "SAC"))
    report.ratio(f"{case}: AW-MLE / SAC", ratio(times, "AW-MLE", "SAC"), GOAL)


def _flops(products: Sequence[Product], others: Sequence[Product]) -> float:
    return sum(product.flops for product in products) / sum(product.flops for product in others)


def _round(setting: Setting, loop: LatentUpdateLoop) -> None:
    loop.collected(random_transitions(setting, MACRO_STEPS))
    loop.run(MACRO_STEPS)
