"""Processes that are killed at random moments, and what the run is worth afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from ..processes import workers
from .commands import Command, End, Forks, Process
from .references import Moment, Reference, arguments
from .results import differences, results
from .tally import Tally

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LINES = {signal.SIGTERM: "ended by SIGTERM; .*resume=true", signal.SIGINT: "interrupted; .*resume=true"}
#: What a worker's end is told by; one that is killed while it starts may just have closed its pipe.
WORKER = r"error: env worker \d \(pid \d+\) (was killed by|failed|crashed)"
#: Seconds that a process's imports take, about.
IMPORTS = 5.0
STEPS = ("demos", "base", "rollouts", "stage1", "stage2")


@dataclass(frozen=True)
class Kill:
    """Who gets which signal, and when: at a moment, or before the n-th operation on the run folder."""

    number: signal.Signals
    target: str
    when: Moment | int
    real: bool

    @property
    def kind(self) -> str:
        """For the table."""
        return f"{self.number.name} to {self.target}"

    def __str__(self) -> str:
        when = f"before operation {self.when}" if isinstance(self.when, int) else str(self.when)
        return f"{self.kind} {when}{' (a process of its own)' if self.real else ''}"


def draw_kill(draw: random.Random, reference: Reference) -> Kill:
    """Of a run with worker processes, half of the kills hit one of these or the whole group."""
    targets = ["main process"] if reference.workers == 1 else ["main process", "worker", "whole group"]
    target, number, real = draw.choice(targets), draw.choice(SIGNALS), draw.random() < 0.2
    if target == "main process" and not real and draw.random() < 0.5:
        return Kill(number, target, draw.randint(1, len(reference.operations)), real)
    moment = reference.moment(draw)
    if real and not moment.after:
        moment = Moment("", draw.uniform(0.0, IMPORTS))
    return Kill(number, target, moment, real)


def kill_and_resume(tally: Tally, forks: Forks, reference: Reference, *, scratch: Path, draw: random.Random) -> None:
    """One try: a run is killed, perhaps again when it goes on, and then left alone to its end."""
    command, told, kinds = arguments(scratch, workers=reference.workers), f"{scratch}:", []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kill = draw_kill(draw, reference)
        told += f" {kill};"
        end = _killed(forks, kill, command, scratch, draw)
        if end is None:
            break  # it was faster
        problem = _problem(kill, end, done=_step(scratch / "a") == "done")
        if problem is not None:
            tally.add(kill.kind, "wrong", f"{told} {problem}")
            return
        tally.note("killed in", _step(scratch / "a"))
        kinds.append((kill.kind, "one line" if end.lines else "no line"))
        command = arguments(scratch, "resume=true", workers=reference.workers)
    end = forks.run(arguments(scratch, "resume=true", workers=reference.workers), scratch / "resumed")
    lost = end.wrong(0) or differences(results(scratch / "a"), reference.results)
    for kind, outcome in kinds:
        tally.add(kind, "lost" if lost else outcome, f"{told} {lost}")


def _killed(forks: Forks, kill: Kill, command: list[str], scratch: Path, draw: random.Random) -> End | None:
    """How it ended; ``None`` if it did before the kill."""
    streams = scratch / f"killed-{len(list(scratch.glob('*.stderr')))}"
    if isinstance(kill.when, int):
        folder = scratch / "a"
        end = forks.run(command, streams, folder=folder, fault=(kill.when, kill.number))
        count = len((scratch / "a.operations").read_text().splitlines())
        return end if count >= kill.when or end.code else None
    running = Process(command, streams) if kill.real else forks.start(command, streams)
    running.wait_for(scratch / "a" / kill.when.after)
    time.sleep(kill.when.delay)
    hit = _send(running, kill, draw)
    end = running.wait()
    return end if hit or end.code else None


def _send(running: Command, kill: Kill, draw: random.Random) -> bool:
    """Whether there was anybody to be killed."""
    if kill.target == "worker":
        victims: list[int] = []
        while running.running and not victims:
            victims = workers(running.pid)
        if victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(victims), kill.number)
        return bool(victims)
    if kill.number != signal.SIGKILL:
        running.wait_for_handlers()
    hit = running.running
    running.signal(kill.number, group=kill.target == "whole group")
    return hit


def _problem(kill: Kill, end: End, *, done: bool) -> str | None:
    """What is wrong with how a killed run ended."""
    if end.code == 0 or (done and end.code == -kill.number):
        # The worker was needed no more, ignores Ctrl-C, or the whole run was done.
        return end.wrong(end.code) if done else "it says that it is done, and is not"
    if kill.target == "worker":
        return end.wrong(1, line=WORKER)
    if kill.number == signal.SIGKILL:
        return end.wrong(-signal.SIGKILL)
    return end.wrong(128 + kill.number, line=LINES[kill.number])


def _step(folder: Path) -> str:
    """What a run was at."""
    for step in STEPS:
        marker = folder / ("stage1/rollouts.json" if step == "rollouts" else f"{step}/artifact.json")
        if not marker.exists() or not json.loads(marker.read_text())["finished"]:
            return step
    return "done" if (folder / "evaluation.json").exists() else "evaluation"
