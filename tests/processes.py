"""What tests ask the operating system about processes; time-outs are generous, since CI machines are shared."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable

PATIENCE = 120.0


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that are still there."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listed.splitlines())
    return [int(child) for child, parent, state in rows if int(parent) == pid and not state.startswith("Z")]


def command(pid: int) -> str:
    """The command line of a process, empty if it is gone."""
    return subprocess.run(["ps", "-ww", "-p", str(pid), "-o", "args="], capture_output=True, text=True).stdout.strip()


def workers(pid: int) -> list[int]:
    """The env workers of a run."""
    return [child for child in children(pid) if "--multiprocessing-fork" in command(child)]


def wait_until(condition: Callable[[], object], while_running: subprocess.Popen | None = None) -> None:
    """Until ``condition`` holds; fails at once where the process that should bring it about has ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if while_running is not None and time.monotonic() > deadline:
            while_running.kill()  # so that what it printed can be read
        ended = while_running is not None and while_running.poll() is not None
        if (ended and not condition()) or time.monotonic() > deadline:
            raise AssertionError(while_running.communicate(timeout=30) if while_running else "waited in vain")
        time.sleep(0.05)


def wait_until_gone(pids: Iterable[int]) -> None:
    """Until none of the processes is left."""
    pids = list(pids)
    wait_until(lambda: not any(map(command, pids)))


def wait_until_empty(group: int) -> None:
    """Until no process of the group is left."""

    def empty() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    wait_until(empty)
