"""How costs grow: with the ensemble, the UTD ratio, the number of envs, the noise's dimension, the buffer (memory too).

Every ratio is against the first case of its kind, which takes its turns beside the others. The env is a random walk
that costs nothing, so what is left is ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace

from torchrl.collectors import Collector

from benchmarks.chart import draw
from benchmarks.latent_update import LatentUpdateLoop, make_loop
from benchmarks.ratios import Report, interleave, ratio, statistic
from benchmarks.setting import Setting, random_transitions
from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLAWMLE
from dsrl_torchrl.agents.dsrl_aw_mle import pick_decoded_pair
from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.data.replay import Replay, transition_bytes

SMOKE = {
    "width": 8, "ensembles": [1, 2], "utds": [1, 2], "envs": [1, 2], "horizons": [1, 2], "buffers": [300, 600],
    "work": 1, "repeats": 1,
}  # fmt: skip

MACRO_STEPS = 8  # in a round
PAIRS = {"dsrl_sac": 0, "dsrl_aw_mle": DSRLAWMLE.Config().decoded_pairs}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, default=128, help="of latent policy and critics")
    parser.add_argument("--ensembles", nargs="+", type=int, default=[1, 2, 5, 10, 20])
    parser.add_argument("--utds", nargs="+", type=int, default=[1, 2, 5, 10, 20])
    parser.add_argument("--envs", nargs="+", type=int, default=[1, 2, 8, 32, 128])
    parser.add_argument("--horizons", nargs="+", type=int, default=[1, 4, 8, 16, 64], help="times 4 noise dimensions")
    parser.add_argument("--buffers", nargs="+", type=int, default=[1_000, 10_000, 100_000], help="macro transitions")
    parser.add_argument("--work", type=int, default=20, help="updates, batches or macro steps in a turn")


def main(arguments: argparse.Namespace) -> None:
    report = Report("scaling", arguments.out)
    base = Setting(width=arguments.width)
    for algorithm in ("dsrl_sac", "dsrl_aw_mle"):
        _ensemble(report, base, algorithm, arguments)
        _noise(report, base, algorithm, arguments)
        _buffer(report, base, algorithm, arguments)
    _utd(report, base, arguments)
    _envs(report, base, arguments)
    report.write()
    draw(report, f"Cost against size (width {arguments.width})")


def _ensemble(report: Report, base: Setting, algorithm: str, arguments: argparse.Namespace) -> None:
    settings = {f"N={n}": replace(base, num_critics=n) for n in arguments.ensembles}
    _updates(report, settings, algorithm, "update, by ensemble", arguments)


def _noise(report: Report, base: Setting, algorithm: str, arguments: argparse.Namespace) -> None:
    settings = {f"{base.action * h} dims": replace(base, horizon=h) for h in arguments.horizons}
    _updates(report, settings, algorithm, "update, by noise", arguments)


def _updates(
    report: Report, settings: Mapping[str, Setting], algorithm: str, kind: str, arguments: argparse.Namespace
) -> None:
    loops = {case: make_loop(s, algorithm, 2_000) for case, s in settings.items()}
    sides = {case: lambda loop=loop: loop.run(arguments.work) for case, loop in loops.items()}
    _compare(report, sides, f"{algorithm} {kind}", arguments.work, arguments)


def _buffer(report: Report, base: Setting, algorithm: str, arguments: argparse.Namespace) -> None:
    sides = {}
    for size in arguments.buffers:
        replay, transitions = Replay(size, base.batch_size), random_transitions(base, size, PAIRS[algorithm])
        replay.extend(transitions)
        report.value(f"n={size}: {algorithm} memory", statistic([size * transition_bytes(transitions) / 2**20]), "MiB")
        sides[f"n={size}"] = lambda replay=replay: [
            pick_decoded_pair(replay.sample(1)) for _ in range(10 * arguments.work)
        ]
    _compare(report, sides, f"{algorithm} batch, by buffer", 10 * arguments.work, arguments)


def _utd(report: Report, base: Setting, arguments: argparse.Namespace) -> None:
    """A round of stage 2: collect through the latent env, store, update."""
    sides = {}
    for utd in arguments.utds:
        loop = make_loop(base, "dsrl_aw_mle", 2_000)
        sides[f"UTD {utd}"] = _round(base, loop, utd)
    _compare(report, sides, "dsrl_aw_mle round, by UTD", MACRO_STEPS, arguments)


def _round(base: Setting, loop: LatentUpdateLoop, utd: int) -> Callable[[], None]:
    batches = iter(_collector(base.env(), loop, MACRO_STEPS))

    def run() -> None:
        loop.collected(to_macro_transitions(next(batches), loop.agent.in_keys))
        loop.run(utd * MACRO_STEPS)

    return run


def _envs(report: Report, base: Setting, arguments: argparse.Namespace) -> None:
    """Macro steps of envs that are batched in one process."""
    sides = {}
    for envs in arguments.envs:
        batches = iter(_collector(base.env(envs), make_loop(base, "dsrl_sac", 300), envs * arguments.work))
        sides[f"{envs} envs"] = lambda batches=batches: next(batches)
    times = interleave(sides, arguments.repeats)
    first = next(iter(times))
    for case, seconds in times.items():
        envs = int(case.split()[0])
        report.value(f"{case}: collection", statistic([envs * arguments.work / s for s in seconds]), "macro steps/s")
        found = ratio(times, case, first)
        per_step = {key: value if key == "repeats" else value / envs for key, value in found.items()}
        report.ratio(f"{case}: macro step, by number of envs", per_step)


def _collector(env: LatentActionEnv, loop: LatentUpdateLoop, macro_steps: int) -> Collector:
    return Collector(
        env, loop.agent.policy, frames_per_batch=macro_steps, total_frames=-1, auto_register_policy_transforms=False
    )


def _compare(
    report: Report, sides: Mapping[str, Callable[[], object]], kind: str, work: int, arguments: argparse.Namespace
) -> None:
    times = interleave(dict(sides), arguments.repeats)
    first = next(iter(times))
    for case, seconds in times.items():
        report.value(f"{case}: {kind}", statistic([1e3 * s / work for s in seconds]), "ms")
        report.ratio(f"{case}: {kind}", ratio(times, case, first))
