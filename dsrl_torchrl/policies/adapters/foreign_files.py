"""Reading other projects' files: tensors and plain values come out, whatever else a pickle names stays inert."""

from __future__ import annotations

import functools
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from dsrl_torchrl.errors import CheckpointError, UserError
from dsrl_torchrl.tensor_files import check_fit

Module = TypeVar("Module", bound=nn.Module)
Loader = TypeVar("Loader", bound=Callable[..., Any])


def one_line_errors(load: Loader) -> Loader:
    """``load(path, ...)``, whose every failure is one line that names the file.

    A file of somebody else's can say anything anywhere (a text for a number, a list for a dict, tensors without
    values), and Python, NumPy and PyTorch raise all kinds where they stumble over it.
    """

    @functools.wraps(load)
    def loaded(path: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return load(path, *arguments, **options)
        except UserError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{path} does not say what {load.__name__} reads, or an argument does not fit "
                f"({type(error).__name__}: {_first_line(error)})"
            ) from error

    return cast(Loader, loaded)


class Inert:
    """Stands for whatever class or function a pickle names: keeps what the pickle says, runs nothing."""

    state: Any = None

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_torch_file(path: Path) -> Mapping[str, Any]:
    """The dict in a file of ``torch.save``, plain pickle or dill, without running anything of it.

    PyTorch's ``weights_only`` unpickler builds tensors and containers alone; every other name in the file is an
    :class:`Inert` of its own.

    Raises:
        CheckpointError: missing, no file of ``torch.save``, or no dict.
    """
    try:
        _check_sums(path)
        with torch.serialization.safe_globals([(type(n, (Inert,), {}), n) for n in _foreign_names(path)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror or error}") from None
    except UnpicklingError as error:
        found = re.search(
            r"Unsupported \w+|unsupported GLOBAL [\w.]+|Unsupported operand \d+|GLOBAL [\w.]+", str(error)
        )
        reason = f" ({found[0]})" if found else ""
        raise CheckpointError(
            f"{path} can't be read without running code of it{reason}: save its state_dict() with torch.save"
        ) from None
    except Exception as error:  # a damaged zip, pickle or tensor: torch raises all kinds
        raise CheckpointError(f"{path} is no readable file of torch.save: {_first_line(error)}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} should hold a dict of tensors, it holds a {type(content).__name__}: save its state_dict()"
        )
    return content


def _check_sums(path: Path) -> None:
    """PyTorch does not look at its zip's checksums when it reads: a flipped bit would be another policy."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged, the checksum of {damaged} in it is another: copy it again")


def _foreign_names(path: Path) -> list[str]:
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # a file from before PyTorch 1.6: no stand-ins
        return []


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: missing, or something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold an object, it holds {type(content).__name__}")
    return content


def read_npz(path: Path, names: list[str]) -> dict[str, Tensor]:
    """The arrays ``names`` of a NumPy ``.npz``, as float32.

    Raises:
        CheckpointError: missing, damaged, without one of them, or not of numbers.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.as_tensor(file[name], dtype=torch.float32) for name in names}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged zip, a missing array, an array of objects
        raise CheckpointError(f"{path} should hold the arrays {', '.join(names)}: {_first_line(error)}") from None


def part(content: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    """The dict ``content[name]``; raises :class:`CheckpointError` naming what is there instead."""
    found = content.get(name)
    if not isinstance(found, Mapping):
        there = ", ".join(map(str, content)) or "nothing"
        raise CheckpointError(f"{path} should hold {name!r}, it holds {there[:200]}: is it another project's?")
    return found


def tensors_below(content: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it; floats as float32."""
    found = {name.removeprefix(prefix): t for name, t in content.items() if name.startswith(prefix)}
    return {
        name: t.detach().float() if t.is_floating_point() else t for name, t in found.items() if isinstance(t, Tensor)
    }


def renamed(tensors: Mapping[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    """The same tensors under names to which ``(pattern, replacement)`` were applied in turn."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return found


def filled(module: Module, tensors: Mapping[str, Tensor], path: Path) -> Module:
    """``module``, built on the meta device, with ``tensors`` as its state.

    Raises:
        CheckpointError: names the first tensor that is missing, left over, of another shape, no real number or not
            finite.
    """
    wanted = module.state_dict()
    check_fit(tensors, wanted, path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != wanted[name].is_floating_point() or tensor.is_complex():
            raise CheckpointError(
                f"{path} does not fit: tensor {name!r} should be {wanted[name].dtype}, is {tensor.dtype}"
            )
    module.load_state_dict(dict(tensors), assign=True)
    return module


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
