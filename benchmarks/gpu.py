"""What a graphics card makes of update, decode and replay: eager, compiled, in CUDA graphs, beside floor and bare loop.

    python -m benchmarks gpu                     # on the card; refuses without one
    python -m benchmarks gpu --device cpu --modes eager --cells 2x256

- update: DSRL-NA's and DSRL-SAC's, batch 256, the sizes of PushCube, three hidden layers, random macro transitions;
  sampling the batch included, on every side but the floor's;
- decode: a flow policy (5 steps) and a diffusion policy (10 steps), 3x256;
- replay: eight batches from a replay on the card, and from one on the CPU, moved to the card.

The floor (``benchmarks/floor.py``) is the matrix products alone, on a card replayed as one CUDA graph: launched one by
one they would measure the host. The bare loop (``benchmarks/bare_loop.py``) is eager. Every side works until it is
compiled and captured before anything is timed; a turn ends when the card has finished. Products are in float32, not
TF32, unless torch was told otherwise.

Run on an H200 (``benchmarks/results/gpu.json``, docs/performance.md). The largest case, N = 10 at width 2048, takes
12 GB for networks and optimisers on four sides and 5 GB for the floor. That an update can be captured at all is tested
without a card (``tests/training/test_captured_update.py``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from tensordict.nn import CudaGraphModule
from torch import Tensor

from benchmarks.bare_loop import BareNA, BareSAC
from benchmarks.card import describe, find_device
from benchmarks.chart import draw
from benchmarks.floor import Floor, Product, forward, na_products, sac_products
from benchmarks.latent_update import LatentUpdateLoop
from benchmarks.ratios import Report, Times, interleave, ratio, statistic
from benchmarks.setting import GAMMA, MAGNITUDE, RandomWalkEnv, Setting, random_transitions, two_sizes
from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.data.replay import Replay
from dsrl_torchrl.files import write_json
from dsrl_torchrl.policies import DiffusionPolicy, FlowPolicy
from dsrl_torchrl.policies.generative import GenerativePolicy
from dsrl_torchrl.policies.networks import TIME_FEATURES
from dsrl_torchrl.training.update_rounds import UPDATES_PER_SAMPLE, WARM_UP

SMOKE = {
    "device": "cpu", "modes": ["eager"], "cells": ["2x8"], "batches": [4], "base_width": 8, "seconds": 0.01,
    "transitions": 300, "repeats": 2,
}  # fmt: skip

#: Ways to run the same code, by their names on the command line.
MODES = {"eager": "eager", "compile": "compile", "graphs": "compile + graphs"}
GRAPHS = MODES["graphs"]
BARE: dict[str, type[BareNA]] = {"dsrl_na": BareNA, "dsrl_sac": BareSAC}
PRODUCTS: dict[str, Callable[[Setting], list[Product]]] = {"dsrl_na": na_products, "dsrl_sac": sac_products}
#: Its sampler's steps by default.
BASE_POLICIES: dict[str, tuple[type[GenerativePolicy], int]] = {
    "flow": (FlowPolicy, 5),
    "diffusion": (DiffusionPolicy, 10),
}

FASTER_THAN_EAGER = {(10, 256): ">= 5"}
NEAR_THE_FLOOR = {(2, 2048): "<= 1.3", (10, 2048): "<= 1.3"}

#: Does a number of updates, decodes or samples.
Run = Callable[[int], object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda", help="cuda, cuda:<index>, or cpu to try it out")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="graphs: on a card alone")
    cells = [f"{n}x{width}" for width in (256, 512, 1024, 2048) for n in (2, 10)]
    parser.add_argument(
        "--cells", nargs="+", type=two_sizes, metavar="NxWIDTH", default=cells, help="ensemble size x width"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 2048], help="of a decode")
    parser.add_argument("--base-width", type=int, default=256, help="of the base policy")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of an eager turn")
    parser.add_argument("--transitions", type=int, default=20_000, help="in the replay")


def main(arguments: argparse.Namespace) -> None:
    bench = Bench(arguments, find_device(arguments.device))
    for cell in arguments.cells:
        n, width = (int(number) for number in cell.split("x"))
        setting = Setting(num_critics=n, width=width, base_width=arguments.base_width)
        for algorithm in BARE:
            bench.update(setting, algorithm)
    for kind in BASE_POLICIES:
        for batch in arguments.batches:
            bench.decode(Setting(batch_size=batch, base_width=arguments.base_width), kind)
    bench.replay(Setting(base_width=arguments.base_width))
    report = bench.report
    report.write()
    # Report knows nothing of cards, and their drivers matter.
    path = report.folder / f"{report.name}.json"
    write_json(path, json.loads(path.read_text()) | {"card": describe(bench.device)})
    draw(report, f"Updates, decodes and replay on {bench.device}")


@dataclass
class Bench:
    """The measurements on one device.

    Attributes:
        arguments: of the command line.
        device: where everything but the simulator is.
        modes: those of :data:`MODES` that are asked for and can be had there.
        report: takes the ratios.
    """

    arguments: argparse.Namespace
    device: torch.device
    modes: list[str] = field(init=False)
    report: Report = field(init=False)

    def __post_init__(self) -> None:
        self.modes = [MODES[mode] for mode in self.arguments.modes if mode != "graphs" or self.device.type == "cuda"]
        if len(self.modes) < len(self.arguments.modes):
            print("no CUDA graphs on a CPU: without them")
        self.report = Report("gpu", self.arguments.out)

    def update(self, setting: Setting, algorithm: str) -> None:
        """Gradient updates, as the training loop makes them."""
        cell = setting.num_critics, setting.width
        case = f"{algorithm.removeprefix('dsrl_').upper()} N={cell[0]} width={cell[1]}"
        data = random_transitions(setting, self.arguments.transitions).to(self.device)
        policy = setting.base_policy().to(self.device)
        sides: dict[str, Run] = {}
        for mode in self.modes:
            env = LatentActionEnv(RandomWalkEnv(setting), policy, gamma=GAMMA, action_magnitude=MAGNITUDE)
            loop = LatentUpdateLoop(setting.agent(algorithm, env), data)
            loop.update.compile, loop.update.cuda_graphs = mode != MODES["eager"], mode == GRAPHS
            sides[mode] = loop.run
        with torch.device(self.device):  # not around its turns: that would cost half as much again, on the host
            bare = BARE[algorithm](setting, loop.agent.config, data, policy)
        sides |= {"bare": bare.run, "floor": self._floor(PRODUCTS[algorithm](setting))}
        goals = {f"eager / {GRAPHS}": FASTER_THAN_EAGER.get(cell), f"{GRAPHS} / floor": NEAR_THE_FLOOR.get(cell)}
        self._compare(case, sides, "updates/s", goals)

    def decode(self, setting: Setting, kind: str) -> None:
        """Chunks of ``setting.batch_size`` observations."""
        policy_class, steps = BASE_POLICIES[kind]
        setting = replace(setting, sampler_steps=steps)
        network = {"kind": "mlp", "width": setting.base_width, "depth": setting.base_depth}
        sizes = setting.observation, setting.action, setting.horizon
        policy = policy_class(*sizes, sampler_steps=steps, network=network).freeze().to(self.device)
        observation = torch.randn(setting.batch_size, setting.observation, device=self.device)
        noise = torch.randn(setting.batch_size, setting.horizon, setting.action, device=self.device)

        def decode(observation: Tensor, noise: Tensor) -> Tensor:
            return policy(observation, noise)

        sides: dict[str, Run] = {}
        for mode in self.modes:
            step = decode if mode == MODES["eager"] else torch.compile(decode)
            step = CudaGraphModule(step, warmup=WARM_UP, device=self.device) if mode == GRAPHS else step
            sides[mode] = partial(_decode, step, observation, noise)
        layers = [setting.observation + setting.noise + TIME_FEATURES, *[setting.base_width] * setting.base_depth]
        sides["floor"] = self._floor(forward([*layers, setting.noise], setting.batch_size) * steps)
        self._compare(f"decode {kind} batch={setting.batch_size}", sides, "decodes/s", {})

    def replay(self, setting: Setting) -> None:
        """Batches on the device, from transitions there and from transitions on the CPU."""
        data = random_transitions(setting, self.arguments.transitions)
        sides: dict[str, Run] = {}
        for name, home in (("replay here", self.device), ("replay on the CPU", torch.device("cpu"))):
            replay = Replay(len(data), setting.batch_size, device=home)
            replay.extend(data.to(home))
            sides[name] = partial(_sample, replay, self.device)
        times = self._times("batch", sides, "samples/s")
        self.report.ratio("batch: replay on the CPU / here", ratio(times, "replay on the CPU", "replay here"))

    def _floor(self, products: Sequence[Product]) -> Run:
        with torch.device(self.device):
            floor = Floor(products)
        if self.device.type == "cpu":
            return floor.run
        floor.run(1)  # cuBLAS makes its workspace
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            floor.run(1)
        return partial(_replay, graph, floor)

    def _compare(self, case: str, sides: Mapping[str, Run], unit: str, goals: Mapping[str, str | None]) -> None:
        """Every mode against the first one, and against what is no mode."""
        times = self._times(case, sides, unit)
        pairs = [(self.modes[0], mode) for mode in self.modes[1:]]
        pairs += [(mode, other) for other in sides if other not in self.modes for mode in self.modes]
        for first, second in pairs:
            kind = f"{first} / {second}"
            self.report.ratio(f"{case}: {kind}", ratio(times, first, second), goals.get(kind))

    def _times(self, case: str, sides: Mapping[str, Run], unit: str) -> Times:
        """Turns of as much work as the first side does in ``--seconds``, each to its end on the card."""

        def turn(run: Run, count: int) -> None:
            run(count)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        for run in sides.values():
            turn(run, 2 * WARM_UP)
        first = next(iter(sides.values()))
        start = time.perf_counter()
        turn(first, 2)
        count = max(UPDATES_PER_SAMPLE, round(self.arguments.seconds / ((time.perf_counter() - start) / 2)))
        turns = {name: partial(turn, run, count) for name, run in sides.items()}
        times = interleave(turns, self.arguments.repeats)
        for name, seconds in times.items():
            self.report.value(f"{case}: {name}", statistic([count / s for s in seconds]), unit)
        torch.compiler.reset()  # what was compiled holds the networks
        return times


@torch.no_grad()
def _decode(step: Callable[[Tensor, Tensor], Tensor], observation: Tensor, noise: Tensor, count: int) -> None:
    for _ in range(count):
        step(observation, noise)


def _sample(replay: Replay, device: torch.device, count: int) -> None:
    for _ in range(count):
        replay.sample(UPDATES_PER_SAMPLE).to(device)


def _replay(graph: torch.cuda.CUDAGraph, floor: Floor, count: int) -> None:
    """``floor`` owns the memory that ``graph`` works on."""
    for _ in range(count):
        graph.replay()
