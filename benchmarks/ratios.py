"""Ratios of times from one run: the sides take turns, so that other load on the machine hits all of them alike."""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch

from dsrl_torchrl.files import write_json

#: Of a statistic. No range: a turn from which another process stole the core says nothing about the code.
SPREAD = "low and high are the quartiles over the repeats"


class Times(dict[str, list[float]]):
    """Seconds of every side in every repeat, by the clock; ``cpu`` has those of the CPU.

    CPU seconds are those of this process and of its worker processes: what other load on the machine disturbs less.
    """

    def __init__(self, sides: Iterable[str]) -> None:
        super().__init__({name: [] for name in sides})
        self.cpu: dict[str, list[float]] = {name: [] for name in self}


Statistic = dict[str, float]


def interleave(sides: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> Times:
    """Times every side in every repeat.

    A repeat runs each side once; every second repeat runs them in reverse, so that a load that grows or fades does not
    favour the side that comes first.

    Args:
        sides: what to time, by name.
        repeats: turns of each side.
        warmup: turns before them that are not counted: the first one pays for allocations and caches.
    """
    for _ in range(warmup):
        for side in sides.values():
            side()
    times = Times(sides)
    for repeat in range(repeats):
        for name in reversed(sides) if repeat % 2 else sides:
            cpu, start = cpu_seconds(), time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - start)
            times.cpu[name].append(cpu_seconds() - cpu)
    return times


def cpu_seconds() -> float:
    """CPU seconds of this process and of its living worker processes so far."""
    seconds = time.process_time()
    for worker in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # another system, or it has just ended
            continue
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime
    return seconds


def ratio(times: Mapping[str, Sequence[float]], a: str, b: str) -> Statistic:
    """How many times as long as ``b`` does ``a`` take: one ratio per repeat, of turns that are neighbours in time."""
    return statistic([s / t for s, t in zip(times[a], times[b], strict=True)])


def statistic(values: Sequence[float]) -> Statistic:
    """Median and quartiles."""
    low, high = min(values), max(values)
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high, "repeats": len(values)}


@dataclass
class Report:
    """What a benchmark found: printed as it comes, written as JSON at the end.

    Attributes:
        name: of the benchmark and its files.
        folder: where they go.
        ratios: by name, each with ``median``, ``low``, ``high`` and ``repeats``.
        values: the same for quantities that are no ratios (updates per second, bytes): they hold for one machine only.
        goals: by the name of the ratio, e.g. ``<= 1.25``.
    """

    name: str
    folder: Path
    ratios: dict[str, Statistic] = field(default_factory=dict)
    values: dict[str, Statistic] = field(default_factory=dict)
    goals: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str, found: Statistic, goal: str | None = None) -> None:
        """Adds and prints a ratio."""
        self.ratios[name] = found
        if goal is not None:
            self.goals[name] = goal
        print(f"{name:<56}{_spread(found)}{f'  goal {goal}' if goal else ''}", flush=True)

    def value(self, name: str, found: Statistic, unit: str) -> None:
        """Adds and prints a quantity."""
        self.values[f"{name} [{unit}]"] = found
        print(f"{name:<56}{_spread(found)} {unit}", flush=True)

    def write(self) -> None:
        """Writes ``<folder>/<name>.json``."""
        path = self.folder / f"{self.name}.json"
        write_json(
            path,
            {
                "command": f"python -m benchmarks {' '.join(sys.argv[1:])}",
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "machine": machine(),
                "spread": SPREAD,
                "ratios": self.ratios,
                "goals": self.goals,
                "values": self.values,
            },
        )
        print(f"-> {path}")


def machine() -> dict[str, str | int | float]:
    """What the times depend on, beside the code."""
    return {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count() or 0,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average_1min": round(os.getloadavg()[0], 1),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _spread(found: Statistic) -> str:
    return f"{found['median']:10.4g}  [{found['low']:.4g}, {found['high']:.4g}] of {found['repeats']}"
