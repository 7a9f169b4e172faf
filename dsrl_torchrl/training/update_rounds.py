"""Updates in rounds: several from one sample share what is done once, each compiled or captured where asked for."""

from __future__ import annotations

import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from tensordict import TensorDictBase
from tensordict.nn import CudaGraphModule
from torch import Tensor
from torchrl.envs.utils import exploration_type, set_exploration_type

from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.training.run_state import Counters

#: Updates that share a sample and what :meth:`Agent.prepare` does for all of them, such as the decode of TD targets.
UPDATES_PER_SAMPLE = 8
#: Calls before a capture: compilation and the optimisers' state have to be done by then.
WARM_UP = 5
#: Versions of the same lines that are compiled: every agent of this process has its own, one for each optimiser. With
#: torch's default, 8, the third DSRL-NA of a process would run eagerly, without a word.
COMPILED_VERSIONS = 64


def check_compiler(device: torch.device) -> None:
    """Looks for the compiler that ``torch.compile`` would miss when the first update is made, after the rollouts.

    Raises:
        UserError: neither ``CXX`` (on CUDA ``CC``) nor what torch (on CUDA Triton) looks for without it is there.
    """
    if device.type == "cuda":
        variable, language, commands = "CC", "C", ["clang", "gcc"]
    else:
        variable, language, commands = "CXX", "C++", ["clang++" if sys.platform == "darwin" else "g++"]
    commands = [os.environ[variable]] if variable in os.environ else commands
    if not any(map(shutil.which, commands)):
        names = " or ".join(map(repr, commands))
        raise UserError(
            f"algorithm.compile=true needs a {language} compiler, and there is no {names}: install one (Debian: apt "
            f"install g++), set {variable} to yours, or leave algorithm.compile=false"
        )


class AcceleratedUpdate:
    """``agent.update`` behind the same call, through ``torch.compile`` and CUDA graphs.

    A graph replays one fixed sequence of kernels, so each combination of parts has its own. The parameters and
    optimiser states stay those of ``agent``: checkpoints and other readers see them as before.

    Args:
        agent: eager unless its ``config.compile`` says otherwise: then compiled, and on CUDA captured. On a CPU that
            takes a minute at the first calls and gains nothing (the matrix products dominate).
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        # A search has no optimiser: a graph would hold none of what it does on the host.
        self.compile = agent.config.compile and bool(agent.optimisers)
        self.cuda_graphs = self.compile and agent.device.type == "cuda"
        self._steps: dict[frozenset[str], Callable[[TensorDictBase], TensorDictBase]] = {}

    def __call__(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDictBase:
        """As :meth:`Agent.update`."""
        if parts not in self._steps:
            self._steps[parts] = self._make_step(parts)
        # A batch is a view of its sample. What is compiled may guard the size of a view's base, and samples differ.
        with torch.cuda.device(self.agent.device) if self.cuda_graphs else nullcontext():  # it asks for *the* stream
            return self._steps[parts](batch.clone() if self.compile else batch)

    def _make_step(self, parts: frozenset[str]) -> Callable[[TensorDictBase], TensorDictBase]:
        step: Callable[[TensorDictBase], TensorDictBase] = partial(self.agent.update, parts=parts)
        if self.compile:
            step = torch.compile(step, recompile_limit=COMPILED_VERSIONS)  # type: ignore[call-overload]
        if self.cuda_graphs:
            with warnings.catch_warnings():
                # It takes TensorDicts out of torch's PyTree, which nothing here needs.
                warnings.filterwarnings("ignore", "Tensordict is registered in PyTree")
                step = CudaGraphModule(step, in_keys=[], out_keys=[], warmup=WARM_UP, device=self.agent.device)
        return step


def make_updates(
    update: AcceleratedUpdate, sample: Callable[[int], TensorDictBase], *, first: int, count: int
) -> dict[str, Tensor]:
    """Makes ``count`` updates.

    Args:
        update: of the agent.
        sample: gives ``[n, batch_size]`` macro transitions for n updates.
        first: updates made before.
        count: updates to make.

    Returns:
        The newest value of every metric, on the device.
    """
    agent, metrics, end = update.agent, {}, first + count
    while first < end:
        share = min(UPDATES_PER_SAMPLE, end - first)
        batches = agent.prepare(sample(share))
        for step, batch in enumerate(batches.unbind(0), start=first):
            metrics.update(update(batch, agent.parts(step)).items())
        first += share
    return metrics


class OwedUpdates:
    """Updates that collected macro steps have earned, made when there is time for them.

    Args:
        update: of the agent.
        sample: gives ``[n, batch_size]`` macro transitions for n updates.
        utd: updates per macro step.
    """

    def __init__(self, update: AcceleratedUpdate, sample: Callable[[int], TensorDictBase], utd: float) -> None:
        self._update, self._sample, self._utd, self._exploration = update, sample, utd, exploration_type()
        self._first = self._owed = 0
        self.metrics: dict[str, Tensor] = {}  #: the newest of each, on the device

    def owe(self, counters: Counters) -> None:
        """Counts the updates that ``counters.macro_steps`` have earned by now, those made so far included."""
        self._first, counters.updates = counters.updates, int(self._utd * counters.macro_steps)
        self._owed = counters.updates - self._first

    def make(self) -> None:
        """Makes those that are owed; in the middle of a rollout, too, which knows no gradients and explores."""
        count, self._owed = self._owed, 0
        with torch.enable_grad(), set_exploration_type(self._exploration):
            self.metrics |= make_updates(self._update, self._sample, first=self._first, count=count)


def check_metrics(metrics: dict[str, Tensor], updates: int) -> dict[str, float]:
    """The metrics as numbers.

    Raises:
        NonFiniteError: names the first that is NaN or infinite.
    """
    # Together: each number by itself would wait for the device once more.
    numbers = torch.stack(list(metrics.values())).cpu().tolist() if metrics else []
    values = dict(zip(metrics, numbers, strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(name, updates, "update", "lower the learning rates or alpha_init")
    return values
