"""What tests ask the operating system about processes; time-outs are generous, since CI machines are shared."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterable

PATIENCE = 120.0
#: Start method of worker processes that have their imports from a server, which makes them once; all else is as in
#: ``spawn``.
READY = "forkserver"
multiprocessing.set_forkserver_preload(["torchrl.envs", "torchrl.collectors", "dsrl_torchrl", "dsrl_torchrl.envs.toy"])


def children(pid: int) -> dict[int, str]:
    """The processes that ``pid`` has started and that are still there, with their command lines."""
    columns = ["ps", "-ww", "-eo", "pid=,ppid=,stat=,args="]
    listed = subprocess.run(columns, capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 3) for line in listed.splitlines())
    return {int(row[0]): row[-1] for row in rows if int(row[1]) == pid and not row[2].startswith("Z")}


def command(pid: int) -> str:
    """The command line of a process, empty if it is gone."""
    return subprocess.run(["ps", "-ww", "-p", str(pid), "-o", "args="], capture_output=True, text=True).stdout.strip()


def workers(pid: int) -> list[int]:
    """The env workers of a run."""
    return [child for child, command in children(pid).items() if "--multiprocessing-fork" in command]


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
