"""Which tries are made, some at a time, each drawn from a seed and its number alone."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from . import disks
from .commands import Forks
from .damages import all_damages, damage_and_resume, states
from .kills import kill_and_resume
from .references import Reference
from .tally import Tally
from .two_runs import second_run

#: One step's folder, or the whole run's.
READ_ONLY = ("", "demos", "base", "stage1", "stage2")
NO_FOLDER = ("/dev/null", "file", "file/below")
#: Gets ``scratch`` and ``draw``.
Try = Callable[..., None]


class Suite:
    """The faults of all kinds.

    Args:
        scratch: an empty folder.
        seed: of what is drawn.
        at_once: victims side by side.
    """

    def __init__(self, scratch: Path, seed: int, at_once: int = 2) -> None:
        self.scratch, self.seed, self.at_once = scratch, seed, at_once
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; victims inherit it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.tally, self.forks, self._pool = Tally(), Forks(), ThreadPoolExecutor(at_once)
        self.reference = Reference(scratch / "reference", self.forks)

    def kills(self, count: int, *, with_workers: bool = True) -> None:
        """Kills at least ``count`` processes; every third run has two worker processes."""
        reference = self.reference
        several = Reference(self.scratch / "reference-2", self.forks, 2) if with_workers else reference
        before = self.tally.tried()

        def tries() -> Iterator[Try]:
            for number in itertools.count():
                if self.tally.tried() - before >= count:
                    return
                yield partial(kill_and_resume, self.tally, self.forks, several if number % 3 == 2 else reference)

        self._make("kill", tries())

    def damages(self, sample: int | None = None) -> None:
        """Damages each file in each way, or a sample of these."""
        found = states(self.scratch, self.forks, self.reference)
        damages = [damage for state in found for damage in all_damages(state)]
        if sample is not None:
            damages = random.Random(self.seed).sample(damages, sample)
        self._make("damage", (self._bound(damage_and_resume, damage) for damage in damages))

    def disks(self, count: int, sample: int | None = None) -> None:
        """Fills disks and limits files, each ``count`` times; makes folders read-only; or a sample of these."""
        tries = [self._bound(disks.file_size)] * count + [self._bound(disks.no_folder, o) for o in NO_FOLDER]
        if disks.may_mount(self.scratch):
            tries += [self._bound(disks.full_disk), self._bound(disks.full_disk_in_between)] * count
            tries += [self._bound(disks.read_only_step, step) for step in READ_ONLY]
        else:
            print("full disks and read-only folders are left out: this user may not mount a tmpfs")
        self._make("disk", tries if sample is None else random.Random(self.seed).sample(tries, sample))

    def two_runs(self, count: int) -> None:
        """Starts a second command in a run's folder ``count`` times."""
        self._make("two", [self._bound(second_run)] * count)

    def close(self) -> None:
        """Ends what starts the commands."""
        self._pool.shutdown()
        self.forks.close()

    def _bound(self, attempt: Callable[..., None], *arguments: Any) -> Try:
        return partial(attempt, self.tally, self.forks, self.reference, *arguments)

    def _make(self, name: str, tries: Iterable[Try]) -> None:
        numbered, lock = enumerate(tries), threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    number, attempt = next(numbered, (0, None))
                if attempt is None:
                    return
                folder = self.scratch / f"{name}-{number}"
                folder.mkdir()
                try:
                    attempt(scratch=folder, draw=random.Random(f"{self.seed} {folder.name}"))
                except Exception:
                    self.tally.add(name, "wrong", f"{folder}: {traceback.format_exc()}")
                if not any(str(folder) in failure for failure in self.tally.failures):
                    shutil.rmtree(folder)

        for future in [self._pool.submit(work) for _ in range(self.at_once)]:
            future.result()
