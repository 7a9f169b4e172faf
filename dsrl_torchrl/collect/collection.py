"""Where stage 2's macro steps come from: collected in turn with the updates, or beside them by another process."""

from __future__ import annotations

import copy
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import util as multiprocessing_util
from multiprocessing.connection import Connection
from traceback import extract_tb

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import multiprocessing
from torchrl.collectors import Collector, MultiAsyncCollector
from torchrl.weight_update import SharedMemWeightSyncScheme

from dsrl_torchrl.errors import CollectionError, UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv


class Collection(ABC):
    """Endless batches ``[*B, T]`` of macro steps, made by a policy that is trained meanwhile."""

    _batches: Iterator[TensorDictBase]

    @abstractmethod
    def begin_segment(self, seed: int) -> bool:
        """Called at the start and after every checkpoint; returns whether all envs were reset, from ``seed``."""

    def __iter__(self) -> Collection:
        return self

    def __next__(self) -> TensorDictBase:
        return next(self._batches)

    @abstractmethod
    def close(self) -> None:
        """Ends the collection; also after an error."""


class CollectionInTurn(Collection):
    """Each batch is collected when it is asked for, by the newest weights: the reproducible way.

    Every segment starts with a reset of all envs, so that a run that resumes makes the same segments again.

    Args:
        env: the latent env; it stays open.
        policy: ``observation`` to ``action``.
        macro_steps: per batch, over all envs; rounded up to whole steps of all envs.
    """

    def __init__(self, env: LatentActionEnv, policy: TensorDictModuleBase, macro_steps: int) -> None:
        self._env, self._policy, self._macro_steps = env, policy, macro_steps
        self._collector: Collector | None = None

    def begin_segment(self, seed: int) -> bool:
        self.close()
        self._env.set_seed(seed)
        self._collector = Collector(
            self._env,
            self._policy,
            frames_per_batch=self._macro_steps,
            total_frames=-1,
            auto_register_policy_transforms=False,  # the policy is not recurrent
        )
        self._batches = iter(self._collector)
        return True

    def close(self) -> None:
        if self._collector is not None:
            self._collector.shutdown(close_env=False)
            self._collector = None


class OverlappedCollection(Collection):
    """Another process collects batch k + 1 while this one makes the updates that batch k owes.

    Batch k + 1 is therefore collected by the weights from before those updates: the policy is one round old, never
    more. No batch waits but one, so the two never drift apart. What is under way when the run ends is dropped, and
    counts nowhere. The process lives until :meth:`close`; segments do not reset its envs.

    Args:
        make_env: makes the latent env in the other process, from what :mod:`cloudpickle` can carry.
        policy: ``observation`` to ``action``; the other process has a copy of it.
        macro_steps: as in :class:`CollectionInTurn`.

    Raises:
        CollectionError: the other process failed, here or while batches are awaited.
    """

    def __init__(self, make_env: Callable[[], LatentActionEnv], policy: TensorDictModuleBase, macro_steps: int) -> None:
        self._begun = False
        self._threads = torch.get_num_threads()
        # This end of the writing side stays open: an end of file would look like a message.
        self._failure, self._tell_failure = multiprocessing.get_context("spawn").Pipe(duplex=False)
        with self._failures_explained():
            self._collector = _LearnersCollector(
                policy,
                create_env_fn=[make_env],
                frames_per_batch=macro_steps,
                total_frames=-1,
                auto_register_policy_transforms=False,
                update_at_each_batch=True,
                num_threads=self._threads,
                collector_class=partial(_TellingCollector, tell_failure=self._tell_failure),
                init_fn=_begin_worker,
            )

    def begin_segment(self, seed: int) -> bool:
        if self._begun:
            return False
        with self._failures_explained():
            self._collector.set_seed(seed)
        self._batches = iter(self._collector)
        self._begun = True
        return True

    def __next__(self) -> TensorDictBase:
        with self._failures_explained():
            return next(self._batches)

    def close(self) -> None:
        self._collector.shutdown(raise_on_error=False)
        torch.set_num_threads(self._threads)  # the collector's shutdown sets a number of its own

    @contextmanager
    def _failures_explained(self) -> Iterator[None]:
        try:
            yield
        # TorchRL reports a dead worker by whatever it was doing: RuntimeError, BrokenPipeError, EOFError...
        except Exception as error:
            reason = self._failure.recv() if self._failure.poll() else " ".join(str(error).split())
            raise CollectionError(f"the collecting process failed: {reason}") from None


class _LearnersCollector(MultiAsyncCollector):
    """Sends the weights of ``learner`` before every batch.

    TorchRL puts the weights of the policy that it is given into shared memory *in place*, where the worker would read
    them in the middle of an update. So it is given a copy, and what is sent are the learner's.
    """

    def __init__(self, learner: TensorDictModuleBase, **options) -> None:
        self._learner = learner
        # Without acknowledgments, which a dead worker would never send: weights are written while the worker waits.
        scheme = SharedMemWeightSyncScheme(sync=False)
        super().__init__(policy=copy.deepcopy(learner), weight_sync_schemes={"policy": scheme}, **options)

    def update_policy_weights_(self, *args, **kwargs) -> None:
        super().update_policy_weights_(TensorDict.from_module(self._learner).data)


class _TellingCollector(Collector):
    """The worker's part: an error is told to the main process in one line, not in a traceback on the terminal."""

    def __init__(self, *args, tell_failure: Connection, **kwargs) -> None:
        self._tell_failure = tell_failure
        with self._told():
            super().__init__(*args, **kwargs)

    def iterator(self) -> Iterator[TensorDictBase]:
        with self._told():
            yield from super().iterator()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tell_failure.send(_one_line(error))
            raise EOFError from None  # TorchRL's worker takes it for the end of its parent, and goes quietly


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, UserError):
        return message
    where = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {message} ({where.filename}:{where.lineno})"


def _begin_worker() -> None:
    # Ctrl-C reaches every process of the terminal; the main process alone answers, and closes this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # At its end a process waits until somebody has read what it put into its queues (exit priority -5), for ever if its
    # parent is gone: this one has nothing left to say then.
    multiprocessing_util.Finalize(None, os._exit, args=(0,), exitpriority=-1)
