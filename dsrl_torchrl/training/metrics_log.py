"""Training metrics: one row of ``metrics.csv`` per log call, mirrored to TensorBoard or wandb on request."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal

from torchrl.record.loggers import get_logger

from dsrl_torchrl.files import write_atomically
from dsrl_torchrl.options import Options, option

STEPS = ("env_steps", "updates")


class LoggerConfig(Options):
    """Where metrics go besides ``metrics.csv``; none of it can change a result."""

    type: Literal[None, "tensorboard", "wandb"] = option(None, "mirror of metrics.csv")
    mode: Literal["online", "offline", "disabled"] = option("online", "mode of wandb")
    project: str = option("dsrl", "project of wandb", min_length=1)


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


class MetricsLog:
    """Writes metrics over env steps or updates.

    Args:
        path: the CSV file. Columns that appear later are added to the header.
        step: name of the first column: ``env_steps`` or, offline, ``updates``.
        keep_until: rows beyond this step are dropped: those a killed run wrote after its last checkpoint.
        logger: what mirrors the CSV.
    """

    def __init__(
        self,
        path: Path,
        *,
        step: str = "env_steps",
        keep_until: int = 0,
        logger: LoggerConfig | None = None,
    ) -> None:
        logger = LoggerConfig() if logger is None else logger
        self.path = path
        self.step = step
        self._rows = [row for row in read_metrics(path) if row[step] <= keep_until]
        self._columns = list(dict.fromkeys([step, *(name for row in self._rows for name in row)]))
        self._rewrite()
        self._logger = None
        if logger.type is not None:
            wandb = {"wandb_kwargs": {"mode": logger.mode, "project": logger.project}}
            options = wandb if logger.type == "wandb" else {}
            self._logger = get_logger(logger.type, str(path.parent), path.parent.name, **options)

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
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self._rows)
        write_atomically(self.path, text.getvalue().encode())
