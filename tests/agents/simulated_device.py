"""A device that every machine has: its tensors' numbers lie on the CPU, but it refuses to mix them with the CPU's.

:func:`register` makes it known as ``sim``, in torch's place for other backends (``PrivateUse1``), for the rest of the
process: do so in one of its own. As on CUDA an operation takes tensors of one device, numbers aside (0 dimensions);
copies go between the two, and CPU tensors may be indices.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from torchrl.envs.transforms import DeviceCastTransform

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
TAKES_INDICES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
#: What makes the host wait for the device.
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default}

#: Every wait, and every copy from or to the host: what a CUDA graph cannot have.
traffic: list[str] = []


class _Backend(_DummyBackendModule):
    def synchronize(self, device=None):
        pass


class SimTensor(torch.Tensor):
    """A tensor on ``sim``."""

    @staticmethod
    def __new__(cls, data):
        layout = {"strides": data.stride(), "storage_offset": data.storage_offset(), "dtype": data.dtype}
        self = torch.Tensor._make_wrapper_subclass(cls, data.shape, **layout, device="sim:0")
        self.data_on_cpu = data
        return self

    def __tensor_flatten__(self):
        return ["data_on_cpu"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __repr__(self):
        return f"SimTensor({self.data_on_cpu})"


def _run(func, args, kwargs):
    """Runs an operation on the numbers, and checks that all its tensors are where the result is."""
    device = kwargs.get("device")
    to_cpu = device is not None and torch.device(device).type == "cpu"
    if func is aten.index.Tensor and not isinstance(args[0], SimTensor):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    if func not in COPIES | TAKES_INDICES:
        _check(func, args)
    from_cpu = func is aten.copy_.default and not isinstance(args[1], SimTensor)
    if func in WAITS or from_cpu or (func is aten._to_copy.default and to_cpu):
        traffic.append(str(func))
    on_cpu = {key: _numbers(value) for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    if device is not None:
        on_cpu["device"] = "cpu"
    out = func(*_numbers(args), **on_cpu)
    if func is aten.copy_.default:
        return args[0]
    if to_cpu:
        return out
    return return_and_correct_aliasing(func, args, kwargs, _wrapped(out))


def _check(func, values):
    for value in values:
        if isinstance(value, (list, tuple)):
            _check(func, value)
        elif isinstance(value, torch.Tensor) and not isinstance(value, SimTensor) and value.ndim:
            raise RuntimeError(f"{func} mixes sim and {value.device} {list(value.shape)}")


def _numbers(value):
    if isinstance(value, (list, tuple)):
        return type(value)(_numbers(item) for item in value)
    return value.data_on_cpu if isinstance(value, SimTensor) else value


def _wrapped(value):
    if isinstance(value, (list, tuple)):
        return type(value)(_wrapped(item) for item in value)
    return SimTensor(value) if isinstance(value, torch.Tensor) else value


def _copy(target, source, non_blocking=False):
    if not isinstance(source, SimTensor):
        traffic.append(f"copy from the CPU: {source}")
    target.data_on_cpu.copy_(_numbers(source))
    return target


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return SimTensor(torch.empty_strided(size, stride, dtype=dtype))


def _arange(start, end, step=1, dtype=None, layout=None, device=None, pin_memory=None):
    return SimTensor(torch.arange(start, end, step, dtype=dtype))


def register():
    """Makes ``sim`` a device; returns what keeps it one."""
    _setup_privateuseone_for_python_backend("sim", backend_module=_Backend())
    DeviceCastTransform._sync_device = staticmethod(lambda: None)  # it knows of CUDA, MPS and CPU
    makers = torch.library.Library("_", "IMPL", "PrivateUse1")  # what makes tensors has none to be dispatched by
    makers.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs))
    kernels = torch.library.Library("aten", "IMPL", "PrivateUse1")
    kernels.impl("empty_strided", _empty_strided)  # torch.tensor and torch.as_tensor go by these two alone
    kernels.impl("copy_", _copy)
    kernels.impl("arange", lambda end, **options: _arange(0, end, **options))  # else made empty, and resized
    kernels.impl("arange.start", _arange)
    kernels.impl("arange.start_step", _arange)
    return makers, kernels
