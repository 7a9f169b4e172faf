"""The same update, compiled or captured in CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from tensordict import TensorDictBase
from tensordict.nn import CudaGraphModule

from dsrl_torchrl.agents.agent import Agent

#: Calls before a capture: compilation and the optimisers' state have to be done by then.
WARM_UP = 5
#: Versions of the same lines that are compiled: every agent of this process has its own, one for each optimiser. With
#: torch's default, 8, the third DSRL-NA of a process would run eagerly, without a word.
COMPILED_VERSIONS = 64


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
