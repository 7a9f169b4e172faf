"""Gradient updates per second, against Stable-Baselines3, a bare PyTorch loop and the arithmetic floor.

Batch 256, the sizes of PushCube (35 observations, 32 noise dimensions), three hidden layers, random macro transitions;
sampling the batch is included on every side. Two networks:

- ``plain``: no LayerNorm, no Fourier features: what Stable-Baselines3's SAC has, so that the work is the same;
- ``shipped``: with both, as our networks are by default, and against Stable-Baselines3 all the same.

DSRL-NA is the published one (flow policy 3x256 with 5 steps), on online data alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

from benchmarks.bare_loop import BareNA, BareSAC
from benchmarks.chart import draw
from benchmarks.floor import Floor, na_products, sac_products
from benchmarks.latent_update import make_loop
from benchmarks.ratios import Report, Times, interleave, ratio, statistic
from benchmarks.sb3 import AVAILABLE, HOW_TO_INSTALL, SB3SAC
from benchmarks.setting import Setting, random_transitions, two_sizes

SMOKE = {"cells": ["2x8"], "seconds": 0.01, "transitions": 300, "repeats": 2}

#: By ensemble size and width.
FASTER_THAN_SB3 = {(2, 256): ">= 1.4", (10, 256): ">= 1.5"}
LEVEL_WITH_BARE = {(2, 128): "<= 1.10", (10, 128): "<= 1.03"}
NEAR_THE_FLOOR = {(2, 512): "<= 1.25", (10, 512): "<= 1.25"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cells",
        nargs="+",
        type=two_sizes,
        metavar="NxWIDTH",
        # Ten critics of 2048 take seconds per update on a CPU core, and 5 GB for the three sides that learn.
        default=[f"{n}x{width}" for width in (128, 256, 512) for n in (2, 10)] + ["2x2048"],
        help="ensemble size x width",
    )
    parser.add_argument("--depth", type=int, default=3, help="hidden layers")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn of ours")
    parser.add_argument("--transitions", type=int, default=20_000, help="in the replay")


def main(arguments: argparse.Namespace) -> None:
    report = Report("update", arguments.out)
    if not AVAILABLE:
        print(HOW_TO_INSTALL)
    for cell in arguments.cells:
        n, width = (int(number) for number in cell.split("x"))
        shipped = Setting(num_critics=n, width=width, depth=arguments.depth)
        _sac(report, shipped, arguments)
        _na(report, shipped, arguments)
    report.write()
    draw(report, "Time of an update")


def _sac(report: Report, shipped: Setting, arguments: argparse.Namespace) -> None:
    plain = replace(shipped, layer_norm=False, fourier_bands=())
    loop = make_loop(plain, "dsrl_sac", arguments.transitions)
    config, base_policy = loop.agent.config, plain.base_policy()
    data = random_transitions(plain, arguments.transitions)
    sides = {"SAC plain": loop.run}
    if AVAILABLE:
        sides["SB3"] = SB3SAC(plain, config, data).run
    sides |= {
        "bare SAC plain": BareSAC(plain, config, data, base_policy).run,
        "floor of SAC plain": Floor(sac_products(plain)).run,
        "SAC shipped": make_loop(shipped, "dsrl_sac", arguments.transitions).run,
        "bare SAC shipped": BareSAC(shipped, config, data, base_policy).run,
        "floor of SAC shipped": Floor(sac_products(shipped)).run,
    }
    cell = shipped.num_critics, shipped.width
    case = f"N={cell[0]} width={cell[1]}"
    times = time_in_turns(report, case, sides, arguments)
    if AVAILABLE:
        report.ratio(f"{case}: SB3 / SAC plain", ratio(times, "SB3", "SAC plain"), FASTER_THAN_SB3.get(cell))
        report.ratio(f"{case}: SB3 / SAC shipped", ratio(times, "SB3", "SAC shipped"))
        # SB3 computes weight gradients of the critics in its actor step: it is this much above our arithmetic.
        report.ratio(f"{case}: SB3 / floor of SAC plain", ratio(times, "SB3", "floor of SAC plain"))
    for side in ("SAC plain", "SAC shipped"):
        report.ratio(f"{case}: {side} / bare", ratio(times, side, f"bare {side}"), LEVEL_WITH_BARE.get(cell))
        report.ratio(f"{case}: {side} / bare, CPU", ratio(times.cpu, side, f"bare {side}"), LEVEL_WITH_BARE.get(cell))
        report.ratio(f"{case}: {side} / floor", ratio(times, side, f"floor of {side}"), NEAR_THE_FLOOR.get(cell))


def _na(report: Report, setting: Setting, arguments: argparse.Namespace) -> None:
    loop = make_loop(setting, "dsrl_na", arguments.transitions, offline=False)
    data = random_transitions(setting, arguments.transitions)
    sides = {
        "NA shipped": loop.run,
        "bare NA shipped": BareNA(setting, loop.agent.config, data, setting.base_policy()).run,
        "floor of NA shipped": Floor(na_products(setting)).run,
    }
    cell = setting.num_critics, setting.width
    case = f"N={cell[0]} width={cell[1]}"
    times = time_in_turns(report, case, sides, arguments)
    for clock, seconds in (("", times), (", CPU", times.cpu)):
        found = ratio(seconds, "NA shipped", "bare NA shipped")
        report.ratio(f"{case}: NA shipped / bare{clock}", found, LEVEL_WITH_BARE.get(cell))
    report.ratio(f"{case}: NA shipped / floor", ratio(times, "NA shipped", "floor of NA shipped"))


def time_in_turns(
    report: Report, case: str, sides: dict[str, Callable[[int], None]], arguments: argparse.Namespace
) -> Times:
    """Turns of as many updates as the first side makes in ``arguments.seconds``."""
    first = next(iter(sides.values()))
    first(1)
    start = time.perf_counter()
    first(2)
    updates = max(1, round(arguments.seconds / ((time.perf_counter() - start) / 2)))
    times = interleave({name: lambda run=run: run(updates) for name, run in sides.items()}, arguments.repeats)
    for name, seconds in times.items():
        report.value(f"{case}: {name}", statistic([updates / s for s in seconds]), "updates/s")
    return times
