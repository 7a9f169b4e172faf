"""Envs in worker processes, whose failure is one line."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, ParallelEnv

from dsrl_torchrl.collect.spawned_process import (
    PATIENCE,
    WorkerContext,
    WorkerError,
    WorkerKilledError,
    WorkerProcess,
    silence_resource_sharer,
    silence_resource_tracker,
)


class WorkerEnvs(ParallelEnv):
    """TorchRL's ``ParallelEnv`` of spawned processes, with an end that is told apart and told once.

    TorchRL's workers print their tracebacks, and the main process then fails of a closed pipe or of an env that is
    closed already. Here the first failure closes everything and is a :class:`WorkerError` with its cause. Torch's
    number of threads stays as it is; ``ParallelEnv`` takes some for its workers and gives others back.

    Attributes:
        meanwhile: called between an action and its outcome, while the workers simulate; ``None`` just waits.

    Args:
        num_workers: number of processes.
        make_env: makes one worker's env; pickled.

    Raises:
        WorkerError: at any use, if a worker has failed.
        WorkerKilledError: likewise, if it was killed.
    """

    # ParallelEnv deletes them when it closes, and starts new workers when asked for an attribute that is not there.
    _workers: list[WorkerProcess] = []  # noqa: RUF012
    parent_channels: list[multiprocessing.connection.Connection] = []  # noqa: RUF012

    def __init__(self, num_workers: int, make_env: Callable[[], EnvBase]) -> None:
        # Without buffers: with them ParallelEnv polls its workers in a busy loop, which takes the core that they need.
        super().__init__(num_workers, make_env, mp_start_method=WorkerContext.method, use_buffers=False)
        self.meanwhile: Callable[[], None] | None = None
        self._stepping = False

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
        silence_resource_sharer()
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
        self._stepping = True
        try:
            with self._failures_named():
                return super()._step(tensordict)
        finally:
            self._stepping = False

    def _wait_for_workers(self, workers_range: Sequence[int]) -> None:
        if self._stepping and self.meanwhile is not None:
            self._stepping = False
            self.meanwhile()
        super()._wait_for_workers(workers_range)

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
            kind = WorkerKilledError if first.killed else WorkerError
            failure = kind(f"env worker {self._workers.index(first)} (pid {first.pid}) {first.end()}")
            self._end()
            raise failure

    def _cleanup_failed_worker_startup(self) -> None:
        self._raise_failure(PATIENCE)
        self._end()

    def _end(self) -> None:
        """Ends the processes at once, without a word to them."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
            worker.close()
        for channel in self.parent_channels:
            channel.close()
        self._workers, self.parent_channels = [], []
        self.is_closed = True


@contextlib.contextmanager
def _unchanged_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
