"""Latent envs on Ray workers, here or on other machines: weights go out before every batch, macro transitions come in.

TorchRL's ``RayCollector`` does the work; the learner and its replay stay in this process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl._utils import seed_generator
from torchrl.collectors import Collector
from torchrl.collectors.distributed import RayCollector

from dsrl_torchrl.collect.spawned_process import PATIENCE, WorkerError, WorkerKilledError
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv

try:
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError
except ImportError:
    ray = None  # type: ignore[assignment]

#: Starts Ray on this machine, for as long as the workers live.
LOCAL = "local"
#: The generators of a worker's latent policy have seeds beyond every seed of an env.
NOISE_SEEDS = 2**40
#: RayCollector (torchrl 0.14.1) takes the documented -1, "no limit", for a limit that has been reached.
ENDLESS = sys.maxsize


class RayWorkers:
    """Collectors of latent envs, each a Ray actor with an env, a base policy and a copy of the latent policy.

    Actors start with the first batch, and again when another policy is given; otherwise they stay from one use to the
    next. Their copies are on the CPU. Use it as a context manager: it ends the actors, and Ray if it has started it.

    Args:
        make_env: makes one worker's latent env, base policy and all; pickled, so imports are the worker's own.
        num_workers: number of actors; each takes a CPU of the cluster.
        address: ``"local"`` starts Ray on this machine; ``"auto"`` or ``"host:port"`` joins a cluster.

    Raises:
        UserError: no Ray, no cluster there, not as many free CPUs, or a policy that acts by another module's weights.
        WorkerError: at any use, if a worker has failed.
        WorkerKilledError: likewise, if its process or its machine is gone.
    """

    def __init__(self, make_env: Callable[[], LatentActionEnv], num_workers: int, *, address: str = LOCAL) -> None:
        if ray is None:
            raise UserError("collecting on Ray workers needs Ray: pip install 'dsrl-torchrl[ray]'")
        self.make_env, self.num_workers = make_env, num_workers
        self._policy: TensorDictModuleBase | None = None
        self._collector: RayCollector | None = None
        self._waiting = ThreadPoolExecutor(1)
        self._places: list[str] = []
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            _start_ray(address, num_workers)
        free = int(ray.available_resources().get("CPU", 0))
        if free < num_workers:
            self.close()
            raise UserError(f"expected a free CPU of the Ray cluster for each of {num_workers} workers, it has {free}")

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def collecting(
        self, policy: TensorDictModuleBase, seed: int, meanwhile: Callable[[], None] = lambda: None
    ) -> Iterator[Iterator[TensorDictBase]]:
        """Endless batches ``[num_workers, *B, 1]``, one macro step of every env; starts with a reset.

        Args:
            policy: of the actions; its weights, wherever they are, are sent before every batch, and its random numbers
                are drawn in the workers.
            seed: of resets and of these numbers, another for each worker; with the same seed, weights and number of
                workers come the same batches, where the simulator is deterministic.
            meanwhile: called while the workers simulate.
        """
        collector = self._collector_of(policy)
        with self._failures_named():
            seeds = [seed]
            for _ in range(self.num_workers - 1):
                seeds.append(seed_generator(seeds[-1]))
            collector.map_fn("restart", list_of_args=[(each,) for each in seeds])
        yield self._batches(collector, policy, meanwhile)

    def close(self) -> None:
        """Ends the actors at once, and Ray if this object has started it."""
        if self._collector is not None:
            self._collector.shutdown()
            self._collector = self._policy = None
        if self._started_ray:
            self._started_ray = False
            ray.shutdown()
        self._waiting.shutdown(wait=False)

    def _batches(
        self, collector: RayCollector, policy: TensorDictModuleBase, meanwhile: Callable[[], None]
    ) -> Iterator[TensorDictBase]:
        batches = iter(collector)
        while True:
            with self._failures_named():
                collector.update_policy_weights_(policy)
                batch = self._waiting.submit(next, batches)
            meanwhile()
            with self._failures_named():
                received = batch.result()
            yield received

    def _collector_of(self, policy: TensorDictModuleBase) -> RayCollector:
        check_weights(policy)
        if self._collector is None or policy is not self._policy:
            if self._collector is not None:
                self._collector.shutdown()
            self._policy = policy
            with self._failures_named():
                self._collector = _Collector(
                    [self.make_env] * self.num_workers,
                    deepcopy(policy).cpu(),
                    collector_class=SegmentCollector,
                    frames_per_batch=self.num_workers,  # a collector of several envs makes one step of each
                    total_frames=ENDLESS,
                    sync=True,
                    collector_kwargs={"auto_register_policy_transforms": False},  # the policy is not recurrent
                    remote_configs={"num_cpus": 1, "num_gpus": 0},
                )
                self._places = self._collector.map_fn("place")
        return self._collector

    @contextlib.contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except (RayError, RuntimeError) as error:  # RuntimeError: gloo's, which carries the weights
            failure = self._failure(error)
            self.close()
            if failure is None:
                raise
            raise failure from None

    def _failure(self, error: Exception) -> WorkerError | None:
        workers = [] if self._collector is None else self._collector.remote_collectors
        for index, worker in enumerate(workers):
            if isinstance(error, RayTaskError):  # it has raised, and lives
                break
            try:
                ray.get(worker.__ray_ready__.remote(), timeout=PATIENCE)
            except RayActorError:
                where = f" ({self._places[index]})" if self._places else ""
                return WorkerKilledError(f"Ray worker {index}{where} is gone: killed, crashed, or its machine is down")
            except RayError:  # it is busy
                continue
        return WorkerError(f"a Ray worker failed: {_last_words(error)}") if isinstance(error, RayError) else None


class SegmentCollector(Collector):
    """What runs in a worker: a collector whose batches, after each :meth:`restart`, are a function of its seed."""

    def __bool__(self) -> bool:
        # Ray (2.60) asks for it when a worker raises; torchrl 0.14.1's __len__ then raises, too, and the cause is lost.
        return True

    def restart(self, seed: int) -> None:
        """Seeds the env and the policy's noise, and resets the env."""
        torch.manual_seed(NOISE_SEEDS + seed)
        self.env.set_seed(seed)
        self.reset()

    def place(self) -> str:
        """Process and machine, for messages."""
        return f"pid {os.getpid()} on {socket.gethostname()}"


class _Collector(RayCollector):
    def __del__(self) -> None:
        if ray.is_initialized():  # else its `ray.kill` would start Ray again
            super().__del__()


def _start_ray(address: str, num_workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home
    host, separator, port = address.rpartition(":")
    if separator:  # Ray tries for minutes
        try:
            socket.create_connection((host, int(port)), PATIENCE).close()
        except (OSError, ValueError) as error:
            raise UserError(f"no Ray cluster at {address} ({error}): start one there with ray start --head") from None
    local: dict[str, Any] = {"num_cpus": num_workers, "include_dashboard": False} if address == LOCAL else {}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # What this process can import, its workers can: a checkout, a user's own policy.
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
            **local,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"no Ray cluster at {address}: {str(error).split('. ')[0]}") from None
    finally:
        with contextlib.suppress(ValueError):  # another thread: ray has taken none there
            signal.signal(signal.SIGTERM, handler)


def check_weights(policy: TensorDictModuleBase) -> None:
    """Refuses a policy that acts by the weights of a module which it does not own: workers would not get them.

    Raises:
        UserError: it is such a policy.
    """
    if any(isinstance(used, nn.Module) for used in vars(policy).values()):  # its own are in a dict of theirs
        raise UserError(
            f"{type(policy).__name__} acts by weights that are not its own, which Ray workers would not get: collect "
            "in processes, or choose another algorithm"
        )


def _last_words(error: Exception) -> str:
    """What a worker raised, in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{'' if isinstance(cause, UserError) else f'{type(cause).__name__}: '}{' '.join(str(cause).split())}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix(f"{UserError.__module__}.UserError: ") if lines else type(error).__name__
