"""Spawned worker processes that never print, and never outlive the main process."""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import multiprocessing.context
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing import resource_tracker
from types import TracebackType
from typing import ClassVar

from dsrl_torchrl.collect.control_group import cores_of_group
from dsrl_torchrl.errors import UserError

#: Seconds that a process whose pipe is closed may take to be gone.
PATIENCE = 10.0
#: Of a socket's path, 103 bytes on macOS and 107 on Linux, multiprocessing takes /pymp-xxxxxxxx/listener-xxxxxxxx.
LONGEST_TEMPORARY_FOLDER = 103 - 32 if sys.platform == "darwin" else 107 - 32


def available_cores() -> int:
    """Cores that this process may use, by its affinity and its control group (a container's ``--cpus``), rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cores_of_group()
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


def check_temporary_folder() -> None:
    """Looks at the folder where processes have the sockets by which they lend each other tensors.

    Raises:
        UserError: there is none, or its path leaves a socket no room (a cluster's folder of a job may be that long).
    """
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:
        raise UserError(
            "env workers need a folder for temporary files that can be written: set TMPDIR to one"
        ) from None
    if len(os.fsencode(folder)) > LONGEST_TEMPORARY_FOLDER:
        raise UserError(
            f"{folder} is too long for the env workers' sockets (at most {LONGEST_TEMPORARY_FOLDER} bytes): set TMPDIR "
            "to a shorter one, such as /tmp, or collector.num_workers=1"
        )


def silence_resource_tracker() -> None:
    """Starts Python's tracker of semaphores where it can't be heard: it would say what a killed main process has left.

    Whoever makes the first semaphore starts it: a progress bar, a replay buffer. So this has to come before.
    """
    with _stderr_into(os.open(os.devnull, os.O_WRONLY)):
        resource_tracker.ensure_running()


def silence_resource_sharer() -> None:
    """Python's thread that lends out tensors' memory prints a traceback if a worker dies as it asks for some.

    That the worker has ended is told anyway.
    """
    told = sys.excepthook
    if getattr(told, "of_threads_that_lend", False):
        return

    def tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        main = threading.current_thread() is threading.main_thread()
        if main or not issubclass(kind, (EOFError, ConnectionError)):
            told(kind, error, traceback)

    tell.of_threads_that_lend = True  # type: ignore[attr-defined]
    sys.excepthook = tell


class WorkerError(UserError):
    """A worker process that failed or was killed: which one, and how, in one line."""


class WorkerKilledError(WorkerError):
    """One that was killed from outside: by a user, a scheduler, or the kernel when memory ran out."""


class WorkerProcess(multiprocessing.context.SpawnProcess):
    """A spawned process whose stderr the main process keeps, and that the kernel ends with its parent.

    The kernel's word for parent is the thread that started it. So one that another thread than the main thread has
    started is not asked for: it outlives the thread, and after a ``kill -9`` of its parent notices at its next message
    that the pipe is closed. The same holds elsewhere than on Linux.

    Attributes:
        around: what processes that start from now on do their work in, each its own; pickled.
    """

    around: ClassVar[Callable[[], AbstractContextManager[None]]] = contextlib.nullcontext

    def start(self) -> None:
        """Starts it, with stderr replaced from its first instruction on: imports may fail or be interrupted."""
        self._parent, self._around = os.getpid(), WorkerProcess.around
        self._ends_with_parent = threading.current_thread() is threading.main_thread()
        read, write = os.pipe()
        try:
            with _stderr_into(write):
                super().start()
        except BaseException:
            os.close(read)
            raise
        # Else the exit waits for what was not closed.
        self._finalizer = multiprocessing.util.Finalize(None, self.kill, exitpriority=0)
        self._last_words: deque[str] = deque(maxlen=20)
        # A full pipe would stop the worker.
        self._reader = threading.Thread(target=self._read, args=(read,), daemon=True)
        self._reader.start()

    def run(self) -> None:
        """In the worker: the target; an exception is one line on stderr."""
        # Ctrl-C reaches every process of the terminal; the main process alone answers, and ends its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._ends_with_parent:
            ask_to_end_with_parent()
        if os.getppid() != self._parent:
            os._exit(1)  # it ended before this process had asked
        try:
            with self._around():
                super().run()
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            print(f"{kind}{' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(1) from None

    @property
    def killed(self) -> bool:
        """Whether a signal from outside has ended it."""
        return self.exitcode is not None and -self.exitcode in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

    def end(self, alone: str = "collector.num_workers=1") -> str:
        """How it ended; ``alone`` is what does the same without it."""
        assert self.exitcode is not None
        if self.killed:
            memory = " (or the machine ran out of memory)" if -self.exitcode == signal.SIGKILL else ""
            return f"was killed by {signal.Signals(-self.exitcode).name}{memory}"
        self._reader.join(PATIENCE)
        said = next((line for line in reversed(self._last_words) if line.strip()), "it said nothing").strip()
        if self.exitcode < 0:
            return f"crashed by {signal.Signals(-self.exitcode).name}: {said}"
        return f"failed: {said} (its traceback: {alone})"

    def close(self) -> None:
        """Gives back what this process keeps of one that has ended."""
        super().close()
        self._finalizer.cancel()

    def _read(self, pipe: int) -> None:
        with open(pipe, errors="replace") as lines:
            self._last_words.extend(lines)


class WorkerContext(multiprocessing.context.SpawnContext):
    """The start method, by name, of :class:`WorkerProcess`."""

    method = "dsrl-worker"
    Process = WorkerProcess


# ParallelEnv takes the name of a start method, and the class of its processes from there.
multiprocessing.context._concrete_contexts[WorkerContext.method] = WorkerContext()  # type: ignore[attr-defined]


def ask_to_end_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        pr_set_pdeathsig = 1
        prctl(pr_set_pdeathsig, signal.SIGKILL)


#: Two threads that replaced stderr at a time could each put back what the other had put there.
_REPLACING = threading.Lock()


@contextlib.contextmanager
def _stderr_into(file: int) -> Iterator[None]:
    """Processes that start meanwhile have the file descriptor ``file`` as stderr; closes it here.

    What other threads of this process print meanwhile, some milliseconds, goes there as well: a worker's last words may
    hold a line too many, none that this process needs is lost. Only so is a process quiet from its first instruction
    on; ``spawn`` offers no way to give it a stderr of its own.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, file)
        stack.enter_context(_REPLACING)
        kept = os.dup(2)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 2)
        os.dup2(file, 2)
        yield
