"""Named tensors on disk, as safetensors: they fit, are finite and are what was written, or are refused by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from dsrl_torchrl.errors import CheckpointError
from dsrl_torchrl.files import bytes_record, check_file, seal, unseal, write_atomically


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Named tensors, from whatever device they are on, as safetensors."""
    return safetensors.torch.save(storable(tensors))


def storable(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors as safetensors takes them: on the CPU, contiguous, each with memory of its own."""
    stored: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if memory in seen else tensor  # safetensors refuses shared memory
        seen.add(memory)
    return stored


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes named tensors as safetensors, atomically."""
    write_atomically(path, tensor_bytes(tensors))


def load_tensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Reads what :func:`save_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, truncated or foreign.
    """
    try:
        return safetensors.torch.load(Path(path).read_bytes())
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {(str(error).splitlines() or ['unreadable'])[0]}") from None


def check_finite_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raises :class:`CheckpointError` for NaN or infinity in what was learned."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: tensor {name!r} holds NaN or infinity; go back to a checkpoint before it")


def check_fit(stored: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: Path) -> None:
    """Whether ``stored`` can be copied into ``wanted``.

    Raises:
        CheckpointError: names the first tensor that is missing, left over, of another shape or not finite, and
            ``path``.
    """
    check_finite_tensors(stored, path)
    for name in sorted(stored.keys() | wanted.keys()):
        want = list(wanted[name].shape) if name in wanted else "absent"
        got = list(stored[name].shape) if name in stored else "absent"
        if want != got:
            raise CheckpointError(f"{path} does not fit: tensor {name!r} should be {want}, but is {got}")


def save_described(
    folder: Path, files: Mapping[str, Mapping[str, torch.Tensor]], description: Mapping[str, Any], name: str
) -> list[Path]:
    """Writes a safetensors file for each of ``files``, then the JSON file ``name``: ``description`` and their hashes.

    Returns:
        What was written.

    Raises:
        CheckpointError: NaN or infinity in them; nothing is written.
    """
    for stem, tensors in files.items():
        check_finite_tensors(tensors, folder / f"{stem}.safetensors")
    records = {}
    for stem, tensors in files.items():
        data = tensor_bytes(tensors)
        records[f"{stem}.safetensors"] = bytes_record(data)
        write_atomically(folder / f"{stem}.safetensors", data)
    write_atomically(folder / name, seal({**description, "files": records}))
    return [folder / file for file in (*records, name)]


@torch.no_grad()
def load_described(
    folder: Path, files: Mapping[str, Mapping[str, torch.Tensor]], description: Mapping[str, Any], name: str
) -> None:
    """Copies what :func:`save_described` wrote into the tensors of ``files``, which may be some of those written.

    In place, across devices.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit, or what ``description`` says is otherwise there;
            ``None`` fits everything.
    """
    stored = unseal(folder / name)
    for key, here in description.items():
        there = stored.get(key)
        if there != here and None not in (there, here):
            raise CheckpointError(f"{folder} does not fit: its {key} is {there}, here it is {here}")
    read: dict[str, dict[str, torch.Tensor]] = {}
    for stem, tensors in files.items():  # all of them before any is copied
        path = folder / f"{stem}.safetensors"
        if path.name not in stored["files"]:
            raise CheckpointError(f"{folder} does not fit: it has no {path.name}")
        check_file(path, stored["files"][path.name])
        read[stem] = load_tensors(path)
        check_fit(read[stem], tensors, path)
    for stem, tensors in files.items():
        for tensor_name, tensor in tensors.items():
            tensor.copy_(read[stem][tensor_name])
