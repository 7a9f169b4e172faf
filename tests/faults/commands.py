"""Starting ``dsrl`` commands, as processes of their own or forked, and what became of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..processes import wait_until

#: Seconds after which a command that should have ended counts as hanging.
PATIENCE = 600.0
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}


@dataclass(frozen=True)
class End:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        """What it said on stderr."""
        return [line for line in self.stderr.splitlines() if line.strip()]

    def wrong(self, *codes: int, line: str | None = None) -> str | None:
        """What is wrong unless it ended with one of ``codes`` and this one line (a pattern), or none."""
        if self.code not in codes:
            return f"exit code {self.code}, not {' or '.join(map(str, codes))}: {self.stderr[-2000:]}"
        if line is None:
            return f"it said {self.stderr[-2000:]}" if self.lines else None
        if len(self.lines) != 1 or not re.match(f"dsrl: .*(?:{line})", self.lines[0]):
            return f"not one line with {line!r}, but {self.stderr[-2000:]!r}"
        return None


class Command:
    """A command that runs, in a process group of its own.

    Args:
        pid: of its main process, and of the group.
        code: waits for it.
        streams: what it prints goes to ``<streams>.stdout`` and ``.stderr``.
    """

    def __init__(self, pid: int, streams: Path) -> None:
        self.pid, self._streams = pid, streams
        self._end: End | None = None
        self._killer = threading.Timer(PATIENCE, self.signal, [signal.SIGKILL])
        self._killer.daemon = True
        self._killer.start()

    def signal(self, number: int, *, group: bool = True) -> None:
        """Sends a signal, where there is still somebody to get it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number) if group else os.kill(self.pid, number)

    @property
    def running(self) -> bool:
        """Whether the main process is there and no zombie."""
        return _fields(self.pid)[:1] not in ([], ["Z"])

    @property
    def ended(self) -> bool:
        """Whether somebody has waited for it."""
        return self._end is not None

    def wait_for(self, path: Path) -> None:
        """Until the file is there, or the command has ended."""
        while self.running and not path.exists():
            time.sleep(0.01)

    def wait_for_handlers(self) -> None:
        """Until it answers SIGTERM itself, or has ended."""
        while self.running:
            caught = re.search(r"SigCgt:\s*(\w+)", _read(f"/proc/{self.pid}/status"))
            if caught is not None and int(caught[1], 16) >> signal.SIGTERM - 1 & 1:
                return
            time.sleep(0.01)

    def wait(self) -> End:
        """How it ended; the whole group must be gone, too."""
        if self._end is None:
            code = self._code()
            self._killer.cancel()
            wait_until(lambda: not _group(self.pid))
            stdout, stderr = (Path(f"{self._streams}.{name}").read_text() for name in ("stdout", "stderr"))
            self._end = End(code, stdout, stderr)
        return self._end

    def _code(self) -> int:
        raise NotImplementedError


class Process(Command):
    """``python -m dsrl_torchrl``, started anew."""

    def __init__(self, arguments: Sequence[str], streams: Path) -> None:
        with open(f"{streams}.stdout", "a") as stdout, open(f"{streams}.stderr", "a") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dsrl_torchrl", *arguments],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=ENVIRONMENT, start_new_session=True,
                restore_signals=True,
            )  # fmt: skip
        super().__init__(self._process.pid, streams)

    def _code(self) -> int:
        return self._process.wait()


class Fork(Command):
    """The same by way of :mod:`tests.faults.forks`."""

    def __init__(self, forks: Forks, server: subprocess.Popen[str], pid: int, streams: Path) -> None:
        self._forks, self._server = forks, server
        super().__init__(pid, streams)

    def _code(self) -> int:
        assert self._server.stdout is not None
        code = int(self._server.stdout.readline())
        self._forks.idle.append(self._server)
        return code


class Forks:
    """Servers, as many as commands ran at once.

    Attributes:
        idle: those whose last command has been waited for.
    """

    def __init__(self) -> None:
        self.idle: list[subprocess.Popen[str]] = []
        self._servers: list[subprocess.Popen[str]] = []

    def start(
        self,
        arguments: Sequence[str],
        streams: Path,
        *,
        folder: Path | None = None,
        fault: tuple[int | str, int] | None = None,
        file_size: int | None = None,
    ) -> Fork:
        """Starts a command in the working directory of the caller.

        Args:
            arguments: of ``dsrl``.
            streams: see :class:`Command`.
            folder: whose operations are noted in ``<folder>.operations``.
            fault: before which of these operations (the n-th, or the first with a text in its path) it sends itself
                which signal.
            file_size: limit of the size of the files that it may write, in bytes.
        """
        try:
            server = self.idle.pop()
        except IndexError:
            server = self._new_server()
        assert server.stdin is not None and server.stdout is not None
        command = {
            "arguments": list(arguments),
            "working_directory": os.getcwd(),
            "stdout": f"{streams}.stdout",
            "stderr": f"{streams}.stderr",
            "folder": None if folder is None else str(folder),
            "fault": fault,
            "file_size": file_size,
        }
        server.stdin.write(json.dumps(command) + "\n")
        server.stdin.flush()
        return Fork(self, server, int(server.stdout.readline()), streams)

    def run(self, arguments: Sequence[str], streams: Path, **options) -> End:
        """Starts a command and waits for its end."""
        return self.start(arguments, streams, **options).wait()

    def close(self) -> None:
        """Ends the servers."""
        for server in self._servers:
            server.communicate()

    def _new_server(self) -> subprocess.Popen[str]:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        self._servers.append(server)
        return server


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ProcessLookupError):
        return ""


def _fields(pid: int | str) -> list[str]:
    """Of ``/proc/<pid>/stat``, from the state on; none for a process that is gone."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _group(group: int) -> bool:
    """Whether anybody is left of a process group; a zombie is nobody."""
    known = (_fields(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return any(fields and int(fields[2]) == group and fields[0] != "Z" for fields in known)
