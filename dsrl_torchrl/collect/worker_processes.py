"""Env worker processes that never print, never outlive the main process, and fail in one line."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, ParallelEnv

from dsrl_torchrl.errors import UserError

#: Seconds that a process whose pipe is closed may take to be gone.
PATIENCE = 10.0


def silence_resource_tracker() -> None:
    """Starts Python's tracker of semaphores where it can't be heard: it would say what a killed main process has left.

    Whoever makes the first semaphore starts it: a progress bar, a replay buffer. So this has to come before.
    """
    with _stderr_into(os.open(os.devnull, os.O_WRONLY)):
        resource_tracker.ensure_running()


class WorkerError(UserError):
    """An env worker process that failed or was killed: which one, and how, in one line."""


class WorkerEnvs(ParallelEnv):
    """TorchRL's ``ParallelEnv`` of spawned processes, with an end that is told apart and told once.

    TorchRL's workers print their tracebacks, and the main process then fails of a closed pipe or of an env that is
    closed already. Here the first failure closes everything and is a :class:`WorkerError` with its cause. Torch's
    number of threads stays as it is; ``ParallelEnv`` takes some for its workers and gives others back.

    Args:
        num_workers: number of processes.
        make_env: makes one worker's env; pickled.

    Raises:
        WorkerError: at any use, if a worker has failed or was killed.
    """

    # ParallelEnv deletes them when it closes, and starts new workers when asked for an attribute that is not there.
    _workers: list[WorkerProcess] = []  # noqa: RUF012
    parent_channels: list[multiprocessing.connection.Connection] = []  # noqa: RUF012

    def __init__(self, num_workers: int, make_env: Callable[[], EnvBase]) -> None:
        # Without buffers: with them ParallelEnv polls its workers in a busy loop, which takes the core that they need.
        super().__init__(num_workers, make_env, mp_start_method=_WorkerContext.method, use_buffers=False)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Ends the processes, in whatever state they are. To close twice is no error: a failure closes, too."""
        if self.is_closed:
            return
        for channel in self.parent_channels:
            with contextlib.suppress(OSError):  # its process has ended
                channel.send(("close", None))
        deadline = time.monotonic() + PATIENCE
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        self._end()

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        with self._failures_named():
            return super().set_seed(seed, static_seed)

    def _start_workers(self) -> None:
        silence_resource_tracker()
        with _unchanged_threads():
            try:
                with self._failures_named():
                    super()._start_workers()
            except BaseException:
                self._end()
                raise

    def _reset(self, tensordict: TensorDictBase, **kwargs: Any) -> TensorDictBase:
        with self._failures_named():
            return super()._reset(tensordict, **kwargs)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        with self._failures_named():
            return super()._step(tensordict)

    @contextlib.contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            if not self.is_closed:
                self._raise_failure(0.0)
            yield
        except (EOFError, ConnectionError) as error:
            self._raise_failure(PATIENCE)  # the other end of the pipe is gone, and the process in a moment
            self._end()
            raise WorkerError(f"an env worker closed its connection ({type(error).__name__})") from None
        except RuntimeError:
            self._raise_failure(0.0)
            raise

    def _raise_failure(self, patience: float) -> None:
        gone = multiprocessing.connection.wait([worker.sentinel for worker in self._workers], patience)
        ended = [worker for worker in self._workers if worker.sentinel in gone]
        if ended:
            for worker in ended:
                worker.join()
            # ParallelEnv terminates the others when it sees that one has ended.
            first = min(ended, key=lambda worker: worker.exitcode == -signal.SIGTERM)
            message = f"env worker {self._workers.index(first)} (pid {first.pid}) {first.end()}"
            self._end()
            raise WorkerError(message)

    def _cleanup_failed_worker_startup(self) -> None:
        self._raise_failure(PATIENCE)
        self._end()

    def _end(self) -> None:
        """Ends the processes at once, without a word to them."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
        for channel in self.parent_channels:
            channel.close()
        self._workers, self.parent_channels = [], []
        self.is_closed = True


class WorkerProcess(multiprocessing.context.SpawnProcess):
    """A spawned process whose stderr the main process keeps, and that the kernel ends with its parent."""

    def start(self) -> None:
        """Starts it, with stderr replaced from its first instruction on: imports may fail or be interrupted."""
        self._parent = os.getpid()
        read, write = os.pipe()
        with _stderr_into(write):
            super().start()
        multiprocessing.util.Finalize(None, self.kill, exitpriority=0)  # else the exit waits for what was not closed
        self._last_words: deque[str] = deque(maxlen=20)
        # A full pipe would stop the worker.
        self._reader = threading.Thread(target=self._read, args=(read,), daemon=True)
        self._reader.start()

    def run(self) -> None:
        """In the worker: the target; an exception is one line on stderr."""
        # Ctrl-C reaches every process of the terminal; the main process alone answers, and ends its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_with(self._parent)
        try:
            super().run()
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            print(f"{kind}{' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(1) from None

    def end(self) -> str:
        """How it ended."""
        assert self.exitcode is not None
        if -self.exitcode in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            return (
                f"was killed by {signal.Signals(-self.exitcode).name}; `resume=true` goes on from the last checkpoint"
            )
        self._reader.join(PATIENCE)
        said = next((line for line in reversed(self._last_words) if line.strip()), "it said nothing").strip()
        if self.exitcode < 0:
            return f"crashed by {signal.Signals(-self.exitcode).name}: {said}"
        return f"failed: {said} (its traceback: collector.num_workers=1)"

    def _read(self, pipe: int) -> None:
        with open(pipe, errors="replace") as lines:
            self._last_words.extend(lines)

    def close(self) -> None:
        """Does nothing: ``ParallelEnv`` closes the handles of what it terminates, and we ask them how it ended."""


class _WorkerContext(multiprocessing.context.SpawnContext):
    method = "dsrl-worker"
    Process = WorkerProcess


# ParallelEnv takes the name of a start method, and the class of its processes from there.
multiprocessing.context._concrete_contexts[_WorkerContext.method] = _WorkerContext()  # type: ignore[attr-defined]


def _end_with(parent: int) -> None:
    """Asks the kernel to kill this process when ``parent`` ends.

    Elsewhere than on Linux the worker notices at its next message that the pipe is closed.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None) if os.name == "posix" else None
    if prctl is not None:
        pr_set_pdeathsig = 1
        prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.name == "posix" and os.getppid() != parent:
        os._exit(1)  # it ended before this process had asked


@contextlib.contextmanager
def _stderr_into(file: int) -> Iterator[None]:
    """Processes that start meanwhile have the file descriptor ``file`` as stderr; closes it here."""
    kept = os.dup(2)
    try:
        os.dup2(file, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(file)


@contextlib.contextmanager
def _unchanged_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
