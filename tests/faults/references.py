"""The run that faults happen to, and the same run without any: what it leaves, and when it did what."""

from __future__ import annotations

import bisect
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

from ..cli.pipeline_run import TINY
from .commands import Forks
from .results import results

#: Every step of the pipeline, with several checkpoints in both stages, and little work in each.
RUN = [
    "run", *TINY, "collector.threads=1", "base_policy.training.steps=20", "stage1.rollout_env_steps=150",
    "stage1.updates=30", "stage1.checkpoint_updates=10", "stage1.check_episodes=2", "stage2.total_env_steps=450",
    "stage2.utd=0.5", "evaluation.episodes=2", "name=a",
]  # fmt: skip


def arguments(output: Path, *options: str, workers: int = 1) -> list[str]:
    """The command."""
    return [*RUN, f"output={output}", f"collector.num_workers={workers}", *options]


@dataclass(frozen=True)
class Moment:
    """When a fault happens: ``delay`` seconds after the file ``after`` has appeared; ``""`` is the command's start."""

    after: str
    delay: float

    def __str__(self) -> str:
        return f"{self.delay:.2f} s after {self.after or 'the start'}"


class Reference:
    """A run that nothing happens to.

    Args:
        scratch: where it is made, ``<scratch>/a``.
        forks: start it.
        workers: env worker processes.
        options: more of the command's.
    """

    def __init__(self, scratch: Path, forks: Forks, workers: int = 1, *options: str) -> None:
        self.workers, self.folder = workers, scratch / "a"
        scratch.mkdir(parents=True)
        command = forks.start(arguments(scratch, *options, workers=workers), scratch / "reference", folder=self.folder)
        started, appeared = time.monotonic(), {"": 0.0}
        while command.running:
            for folder, _, files in os.walk(self.folder):
                if "/." not in folder.removeprefix(str(self.folder)):
                    for path in (folder, *(os.path.join(folder, file) for file in files if file[0] != ".")):
                        name = os.path.relpath(path, self.folder)
                        appeared.setdefault(name, time.monotonic() - started)
            time.sleep(0.01)
        self.seconds = time.monotonic() - started
        end = command.wait()
        assert end.code == 0 and not end.lines, end
        self.results = results(self.folder)
        #: What appeared, in that order, and when.
        self.events = sorted(appeared.items(), key=lambda item: item[1])
        #: What changed the folder.
        self.operations = (scratch / "a.operations").read_text().splitlines()
        self.checkpoints = [name for name, _ in self.events if Path(name).name.startswith("checkpoint-")]

    def moment(self, draw: random.Random) -> Moment:
        """By half uniform over the run's time, by half over what it leaves, so that the short steps are hit too."""
        times = [second for _, second in self.events] + [self.seconds]
        if draw.random() < 0.5:
            at = draw.uniform(0.0, self.seconds)
            index = bisect.bisect_right(times, at) - 1
        else:
            index = draw.randrange(len(self.events))
            at = draw.uniform(times[index], times[index + 1])
        return Moment(self.events[index][0], at - times[index])
