"""Training metrics: one row of ``metrics.csv`` per log call, mirrored to TensorBoard or wandb on request."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from torchrl.record.loggers import get_logger

from dsrl_torchrl.errors import UserError

STEPS = ("env_steps", "updates")
LOGGER_TYPES = (None, "tensorboard", "wandb")
WANDB_MODES = ("online", "offline", "disabled")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file; a cell that was not logged is absent. A line cut by a kill is dropped."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {name: int(cell) if name in STEPS else float(cell) for name, cell in row.items() if cell}
        for row in rows
        if all(cell is not None for cell in row.values())
    ]


def check_logger(type: str | None = None, mode: str = "online", project: str = "dsrl") -> None:
    """Raises :class:`UserError` for logger options that do not exist."""
    if type not in LOGGER_TYPES:
        raise UserError(f"logger.type must be one of null, tensorboard, wandb; got {type!r}")
    if mode not in WANDB_MODES:
        raise UserError(f"logger.mode must be one of {', '.join(WANDB_MODES)}; got {mode!r}")


class MetricsLog:
    """Writes metrics over env steps or updates.

    Args:
        path: the CSV file. Columns that appear later are added to the header.
        step: name of the first column: ``env_steps`` or, offline, ``updates``.
        keep_until: rows beyond this step are dropped: those a killed run wrote after its last checkpoint.
        type: ``None``, ``tensorboard`` or ``wandb``, next to the CSV.
        mode: of wandb: ``online``, ``offline`` or ``disabled``.
        project: of wandb.
    """

    def __init__(
        self,
        path: Path,
        *,
        step: str = "env_steps",
        keep_until: int = 0,
        type: str | None = None,
        mode: str = "online",
        project: str = "dsrl",
    ) -> None:
        check_logger(type, mode)
        self.path = path
        self.step = step
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = [row for row in read_metrics(path) if row[step] <= keep_until]
        self._columns = list(dict.fromkeys([step, *(name for row in self._rows for name in row)]))
        self._rewrite()
        self._logger = None
        if type is not None:
            kwargs = {"wandb_kwargs": {"mode": mode, "project": project}} if type == "wandb" else {}
            self._logger = get_logger(type, str(path.parent), path.parent.name, **kwargs)

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one row."""
        # Floats throughout: a resumed run reads its rows back and must write the same file again.
        row = {self.step: step, **{name: float(value) for name, value in metrics.items()}}
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        if self._logger is not None:
            for name, value in metrics.items():
                self._logger.log_scalar(name, value, step=step)

    def close(self) -> None:
        """Ends the wandb run or flushes TensorBoard; the CSV is complete after every row."""
        experiment = getattr(self._logger, "experiment", None)
        finish = getattr(experiment, "finish", None) or getattr(experiment, "close", None)
        if finish is not None:
            finish()

    def _rewrite(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, self.path)
