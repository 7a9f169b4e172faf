"""What two runs must have in common, file by file, and how files are damaged."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

#: Times, and hashes of files that hold times; what ``resume=true`` is, and where a run is.
NOT_COMPARED = {"wall_seconds", "sha256", "summary.json", "resume", "output"}


def results(folder: Path) -> dict[str, str]:
    """A hash of every file below a run folder, hidden ones included, by its path.

    Wall-clock times are left out, and of a checkpoint the manifest, which holds the hash of these, and the generators:
    those of Python and NumPy, which nothing draws from, are seeded by the operating system.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not ("/checkpoints/" in name and path.name in ("manifest.json", "rng.safetensors")):
            found[name] = hashlib.sha256(_content(path)).hexdigest()
    return found


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    try:
        if path.suffix == ".yaml":
            return json.dumps(_compared(yaml.safe_load(data))).encode()
        if path.suffix == ".json" and path.name != "trajectory.json":
            value = json.loads(data)
            return json.dumps(_compared({k: v for k, v in value.items() if k != "rng"})).encode()
    except (ValueError, AttributeError, yaml.YAMLError):  # damaged
        pass
    return data


def _compared(value: Any) -> Any:
    """Without what is not compared; the hashes that artifacts have of other files stay."""
    if isinstance(value, dict):
        dropped = NOT_COMPARED if "size" not in value else set()
        return {key: _compared(item) for key, item in value.items() if key not in dropped}
    return [_compared(item) for item in value] if isinstance(value, list) else value


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """The files that differ, or that one of both has not."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def _pickled(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(mark)))


def _saved_by_torch(path: Path, mark: Path) -> None:
    torch.save({"model": Bomb(mark)}, path)


def _saved_by_numpy(path: Path, mark: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Bomb(mark)], dtype=object), allow_pickle=True)


BOMBS = (_pickled, _saved_by_torch, _saved_by_numpy)


def truncate(path: Path, draw: random.Random) -> None:
    """To half of it."""
    os.truncate(path, path.stat().st_size // 2)


def zero(path: Path, draw: random.Random) -> None:
    """All of it."""
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path, draw: random.Random) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


DAMAGES = {"truncated": truncate, "zeroed": zero, "one bit flipped": flip}
