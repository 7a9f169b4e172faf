"""The same update, compiled or captured in CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tensordict import TensorDictBase
from tensordict.nn import CudaGraphModule

from dsrl_torchrl.training.update import LatentUpdate

#: Calls before a capture: compilation and the optimisers' state have to be done by then.
WARM_UP = 5


class AcceleratedUpdate:
    """``LatentUpdate`` behind the same call, through ``torch.compile`` and CUDA graphs.

    A graph replays one fixed sequence of kernels, so each combination of ``update_actor`` and ``distil`` has its own.
    The parameters and optimiser states stay those of ``update``: checkpoints and other readers see them as before.

    Args:
        update: eager; it decides by its device: compiled and captured on CUDA, eager on a CPU.
        compile: ``True`` compiles on a CPU, too, which takes a minute at the first calls and gains nothing there (the
            matrix products dominate); ``False`` compiles nowhere.
    """

    def __init__(self, update: LatentUpdate, compile: bool | None = None) -> None:
        on_cuda = update.sac.log_alpha.device.type == "cuda"
        self.update = update
        self.compile = on_cuda if compile is None else compile
        self.cuda_graphs = on_cuda
        self._steps: dict[tuple[bool, bool], Callable[[TensorDictBase], TensorDictBase]] = {}

    def __call__(self, batch: TensorDictBase, *, update_actor: bool = True, distil: bool = True) -> TensorDictBase:
        """As :meth:`LatentUpdate.forward`."""
        if (update_actor, distil) not in self._steps:
            self._steps[update_actor, distil] = self._make_step(update_actor, distil)
        return self._steps[update_actor, distil](batch)

    def prepare(self, batches: TensorDictBase) -> TensorDictBase:
        """As :meth:`LatentUpdate.prepare`, eager: one large batch has no overhead to save."""
        return self.update.prepare(batches)

    def _make_step(self, update_actor: bool, distil: bool) -> Callable[[TensorDictBase], TensorDictBase]:
        step: Callable[[TensorDictBase], TensorDictBase] = partial(
            self.update, update_actor=update_actor, distil=distil
        )
        if self.compile:
            step = torch.compile(step)
        if self.cuda_graphs:
            step = CudaGraphModule(step, in_keys=[], out_keys=[], warmup=WARM_UP)
        return step
