"""Files that appear whole or not at all, and whose damage shows."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from dsrl_torchrl.errors import CheckpointError

#: How the name of a file ends that is being written.
UNFINISHED = ".part"

#: What some network and shared file systems answer, whose folders cannot be synced.
_NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces ``path`` by ``data`` so that a crash leaves the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by `tempfile`, whose 0600 would hide a checkpoint from the rest of the team: the umask decides.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def sweep(folder: Path, own: Collection[str]) -> None:
    """Removes what an interrupted :func:`write_atomically` left in ``folder`` and its folders that ``own`` names.

    Nobody may be writing there now; in others somebody may.
    """
    for path in folder.rglob(f".*{UNFINISHED}"):
        first, *below = path.relative_to(folder).parts
        if not below or first in own:
            path.unlink()


def write_folder_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Makes the folder ``path`` of the files that ``write`` puts into the folder that it gets.

    It takes the place of whatever is there. A crash or a power cut leaves the old folder, the new one, or none beside
    ``.<name>.old``: never a part under its name.
    """
    new, old = (path.with_name(f".{path.name}.{state}") for state in ("new", "old"))
    remove_folder(new)
    new.mkdir(parents=True)
    try:
        write(new)
        for file in sorted(new.iterdir()):
            _sync(file)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _sync(new)
    if path.exists():
        remove_folder(old)
        path.rename(old)
    new.rename(path)
    _sync(path.parent)
    remove_folder(old)


def remove_folder(path: Path) -> None:
    """Removes a folder that may not be there; a crash leaves nothing of it under its name."""
    if path.is_symlink():  # it was moved to another disk
        path.unlink()
    if not path.exists():
        return
    hidden = path if path.name.startswith(".") else path.with_name(f".{path.name}.old")
    if hidden != path:
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
    shutil.rmtree(hidden)


def sync(path: Path) -> None:
    """Brings a file and its name to the disk, so that both survive a power cut."""
    _sync(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_SYNC_OF_FOLDERS):
            raise
    finally:
        os.close(descriptor)


def bytes_record(data: bytes) -> dict[str, Any]:
    """Size and SHA-256, what :func:`check_file` compares with."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def file_record(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest, size = hashlib.sha256(), 0
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    return {"size": size, "sha256": digest.hexdigest()}


def check_file(path: Path, record: Mapping[str, Any]) -> None:
    """Raises :class:`CheckpointError` unless ``path`` is byte for byte what was recorded of it."""
    found = file_record(path)
    if found["size"] != record["size"]:
        raise CheckpointError(f"{path} is damaged: it has {found['size']} bytes, {record['size']} were written")
    if found["sha256"] != record["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not that of what was written")


def seal(value: Mapping[str, Any]) -> bytes:
    """JSON that carries its own SHA-256."""
    plain = json.loads(json.dumps(value))
    return _canonical(plain | {"sha256": hashlib.sha256(_canonical(plain)).hexdigest()})


def unseal(path: Path) -> dict[str, Any]:
    """Reads what :func:`seal` made.

    Raises:
        CheckpointError: it is missing, or any byte of it is another.
    """
    try:
        data = path.read_bytes()
        value = dict(json.loads(data))
        value.pop("sha256", None)
        intact = seal(value) == data
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path} is damaged: its content is not what was written")
    return value


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
