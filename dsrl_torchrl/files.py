"""Files that appear whole or not at all, and tensors in them that fit or are refused by name."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from dsrl_torchrl.errors import CheckpointError


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces ``path`` by ``data`` so that a crash leaves the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide a checkpoint from the rest of the team
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Writes named tensors as safetensors, atomically, from whatever device they are on."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.torch.save(contiguous))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Reads what :func:`save_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, truncated or foreign.
    """
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {str(error).splitlines()[0]}") from None


@torch.no_grad()
def copy_strictly(stored: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copies ``stored`` into ``wanted`` in place, across devices.

    Raises:
        CheckpointError: names the first tensor that is missing, left over or of another shape, and ``path``.
    """
    for name in sorted(stored.keys() | wanted.keys()):
        want = list(wanted[name].shape) if name in wanted else "absent"
        got = list(stored[name].shape) if name in stored else "absent"
        if want != got:
            raise CheckpointError(f"{path} does not fit: tensor {name!r} should be {want}, but is {got}")
    for name, tensor in wanted.items():
        tensor.copy_(stored[name])
