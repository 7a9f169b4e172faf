"""A function's results for a series of items, in the order of the items, computed by several processes."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from dsrl_torchrl.collect.spawned_process import (
    WorkerContext,
    WorkerError,
    WorkerKilledError,
    WorkerProcess,
    silence_resource_tracker,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def in_order(function: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Iterator[Result]]:
    """Lends the results; whoever has enough of them leaves, and what is under way then is ended.

    Args:
        function: pickled for spawned processes, its results, too. They should be small, a path rather than data: a
            process that is killed while it writes one must not leave half of it in the pipe.
        items: for each, one call. Somewhat more of them are taken than there are results.
        processes: 1 calls the function in this process.

    Raises:
        WorkerError: a process has failed other than by an exception of ``function``, which is raised as it is.
        WorkerKilledError: likewise, if it was killed.
    """
    if processes == 1:
        yield map(function, items)
        return
    silence_resource_tracker()
    context = _Context()
    executor = ProcessPoolExecutor(processes, mp_context=context)
    try:
        yield _results(executor, function, items, ahead=2 * processes)
    except BrokenProcessPool:
        executor.shutdown()  # after which all have ended
        raise _failure(context.made) from None
    finally:
        started = [process for process in context.made if process.pid is not None]  # an interruption may come before
        for process in started:
            process.kill()
        executor.shutdown()
        for process in started:
            process.join()
            process.close()


class _Context(WorkerContext):
    """Keeps the processes that it makes: the executor waits for their work, and doesn't tell how one has ended."""

    def __init__(self) -> None:
        self.made: list[WorkerProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> WorkerProcess:  # type: ignore[override]
        self.made.append(WorkerProcess(*args, **kwargs))
        return self.made[-1]


def _results(
    executor: ProcessPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(executor.submit(function, item))
        if len(pending) == ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _failure(processes: list[WorkerProcess]) -> WorkerError:
    # The executor terminates the others when it sees that one has ended.
    number, first = min(enumerate(processes), key=lambda process: process[1].exitcode == -signal.SIGTERM)
    kind = WorkerKilledError if first.killed else WorkerError
    return kind(f"worker process {number} (pid {first.pid}) {first.end('processes=1')}")
