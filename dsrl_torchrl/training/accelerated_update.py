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
        update: eager.
        compile: through ``torch.compile``, which takes about a minute at the first calls. On a CPU it gains about a
            tenth, so it is off there by default.
        cuda_graphs: capture after :data:`WARM_UP` calls; batches must then keep their size. Only on CUDA.
    """

    def __init__(self, update: LatentUpdate, *, compile: bool, cuda_graphs: bool) -> None:
        self.update = update
        self.compile = compile
        self.cuda_graphs = cuda_graphs
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
