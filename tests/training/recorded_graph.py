"""CUDA graphs without CUDA: what an update does is recorded, then done again on the same memory.

:func:`pretend_cuda` puts a recorder in the place of ``torch.cuda.graph`` for tensordict's ``CudaGraphModule``. As on a
card nothing of Python runs again, so whatever an update takes from Python (a count, a branch, a fresh buffer) is frozen
at the capture; a captured operation computes nothing before the first replay, random numbers included.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import torch
from tensordict import is_tensor_collection
from tensordict.nn import CudaGraphModule, cudagraphs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchrl.modules.distributions import continuous

aten = torch.ops.aten
#: What asks the host, which a graph cannot.
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default}

#: Of torch, what ``CudaGraphModule`` uses beside ``torch.cuda``.
USED = ("Tensor", "_foreach_copy_")


class RecordedGraph(TorchDispatchMode):
    """In the place of ``torch.cuda.CUDAGraph``, and of the context that fills it."""

    def __init__(self):
        super().__init__()
        self.operations, self.replays = [], 0

    def __enter__(self):
        self._before, self._generator = [], torch.get_rng_state()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        with torch.no_grad():
            for tensor, value in reversed(self._before):
                tensor.copy_(value)
        torch.set_rng_state(self._generator)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in WAITS:
            raise RuntimeError(f"{func} in a CUDA graph")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._before += [(tensor, tensor.clone()) for tensor in tree_leaves(value)]
        out = func(*args, **kwargs)
        if not func.is_view:
            self.operations.append((func, args, kwargs, None if func._schema.is_mutable else out))
        return out

    @torch.no_grad()
    def replay(self):
        """As ``CUDAGraph.replay``."""
        self.replays += 1
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=False):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


def pretend_cuda(monkeypatch) -> list[RecordedGraph]:
    """Makes ``CudaGraphModule`` record on the CPU; returns the graphs, as they are captured."""
    graphs, recording = [], []

    @contextlib.contextmanager
    def graph(recorded, stream=None):
        graphs.append(recorded)
        recording.append(True)
        with recorded:
            yield
        recording.pop()

    stream = SimpleNamespace(wait_stream=lambda other: None)
    cuda = SimpleNamespace(
        is_available=lambda: True,
        Stream=lambda device=None: stream,
        stream=lambda stream: contextlib.nullcontext(),
        current_stream=lambda device=None: stream,
        synchronize=lambda device=None: None,
        CUDAGraph=RecordedGraph,
        graph=graph,
    )
    call = CudaGraphModule.__call__

    def without_devices(module, *args):
        return call(module, *[arg.copy().clear_device_() if is_tensor_collection(arg) else arg for arg in args])

    monkeypatch.setattr(
        cudagraphs, "torch", SimpleNamespace(cuda=cuda, **{name: getattr(torch, name) for name in USED})
    )
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(CudaGraphModule, "__call__", without_devices)
    monkeypatch.setattr(CudaGraphModule, "_check_device_and_grad", staticmethod(lambda tensor: None))
    monkeypatch.setattr(CudaGraphModule, "_check_device_and_clone", staticmethod(lambda tensor: tensor.clone()))
    monkeypatch.setattr(continuous, "safe_is_current_stream_capturing", lambda: bool(recording))
    return graphs
