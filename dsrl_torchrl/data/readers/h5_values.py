"""Arrays out of an h5 file that somebody else wrote: numbers only, and only those that lie in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch

from dsrl_torchrl.errors import UserError

#: Kinds of NumPy dtypes that are numbers; an object's or a string's bytes are never looked at.
NUMBERS, FLAGS = "fiub", "iub"
#: Between the names of vectors that make one entry.
JOIN = "+"


@contextmanager
def open_h5(path: Path, kind: str) -> Iterator[h5py.File]:
    """The file; whatever HDF5 stumbles over in a damaged one is one line, which says that it is no ``kind``."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except (OSError, LookupError, RuntimeError, TypeError, ValueError, AttributeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is truncated or not a {kind} file ({reason})") from None


def read_values(values: h5py.Dataset, kinds: str, what: str) -> np.ndarray:
    """The array, if it is of one of the ``kinds``; ``what`` names it in the message.

    Raises:
        UserError: it is of another kind.
    """
    if values.dtype.kind not in kinds:
        raise UserError(f"{what} should be {'flags' if kinds == FLAGS else 'numbers'}, but is of type {values.dtype}")
    return np.asarray(values)


def refuse_links(file: h5py.File, group: h5py.Group, names: Iterable[str], where: str) -> None:
    """Raises :class:`UserError` for data that lie in another file, or, by a path from the root, in another episode.

    A hash of this file would not tell the other's changes.
    """
    for name in names:
        if name.startswith("/"):
            raise UserError(f"{name} would be the same data for all episodes: give the path inside of {where}")
        data = group.get(name)
        if isinstance(data, h5py.Dataset) and (data.is_virtual or data.external or data.file.filename != file.filename):
            raise UserError(f"{name} in {where} lies in another file that the h5 only links to: copy it in")


def to_float(values: np.ndarray) -> torch.Tensor:
    """float32; what does not fit into it becomes infinity, which is refused by name."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(values.astype(np.float32))
