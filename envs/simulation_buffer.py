"""Quantities of many bodies as one array, read from their simulations when somebody asks, and set there at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsrl_torchrl.errors import UserError


class Part(NamedTuple):
    """Columns of a :class:`Buffer` that are read and written together."""

    columns: slice
    read: Callable[[int], Any]  #: row -> values of the simulation
    write: Callable[[int, np.ndarray, np.ndarray], None]  #: row, values, which of them were set


class Buffer:
    """What the GPU simulation calls a CUDA array, ``[rows, columns]`` float32.

    Entries are read from the simulation when somebody asks for them, once until :meth:`forget`; those that are set are
    set there at once, in the order in which ManiSkill sets them for one CPU simulation.
    """

    def __init__(self, rows: int, parts: Sequence[Part], moved: Callable[[], None]) -> None:
        self._parts, self._moved = parts, moved
        self._values = torch.zeros(rows, max(part.columns.stop for part in parts))
        self._view = self._values.numpy()
        self._known = np.zeros((len(parts), rows), dtype=bool)

    def torch(self) -> Buffer:
        """Itself: ManiSkill indexes what this returns."""
        return self

    def __getitem__(self, key: tuple[Tensor, Any]) -> Tensor:
        self._read(*key)
        return self._values[key]

    def __setitem__(self, key: tuple[Tensor, Any], values: Tensor) -> None:
        self._read(*key)
        self._values[key] = values
        chosen = np.zeros(self._view.shape, dtype=bool)
        torch.from_numpy(chosen)[key] = True
        for part in self._parts:
            columns = chosen[:, part.columns]
            for row in np.flatnonzero(columns.any(axis=1)).tolist():
                part.write(row, self._view[row, part.columns], columns[row])
        self._moved()

    def forget(self) -> None:
        """The simulation has moved."""
        self._known[:] = False

    def _read(self, rows: Tensor, columns: Any) -> None:
        asked = rows.numpy().ravel()
        for part, known in zip(self._parts, self._known, strict=True):
            if (isinstance(columns, slice) and not _overlap(columns, part.columns)) or known[asked].all():
                continue
            if (asked < 0).any():  # what ManiSkill calls the index of a body that no GPU simulation knows
                raise UserError(
                    "this ManiSkill task looks at a body by a view that is made late, which the batched CPU simulation "
                    "can't follow: task.env.batched=false steps its envs one by one"
                )
            for row in set(asked[~known[asked]].tolist()):
                values = part.read(row)
                self._view[row, part.columns.start : part.columns.start + len(values)] = values
                known[row] = True


def _overlap(one: slice, other: slice) -> bool:
    return (one.start or 0) < other.stop and (one.stop is None or other.start < one.stop)
