"""Training metrics: one row of ``metrics.csv`` per log call, mirrored to TensorBoard or wandb on request."""

from __future__ import annotations

import csv
import io
import os
import uuid
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from torchrl.record.loggers import get_logger

from dsrl_torchrl.errors import CheckpointError, UserError
from dsrl_torchrl.files import write_atomically
from dsrl_torchrl.options import Options, option

STEPS = ("env_steps", "updates")

#: What the environment may say; `run` and `dryrun` are old names of the first two.
WANDB_MODES = ("online", "offline", "shared", "disabled", "run", "dryrun")


class LoggerConfig(Options):
    """Where metrics go besides ``metrics.csv``; none of it can change a result."""

    type: Literal[None, "tensorboard", "wandb"] = option(None, "mirror of metrics.csv")
    mode: Literal[None, "online", "offline", "disabled"] = option(None, "mode of wandb; null: WANDB_MODE, or online")
    project: str = option("dsrl", "project of wandb", min_length=1)


def wandb_mode(config: LoggerConfig) -> str:
    """The mode of wandb, which takes the environment's only where it is told none."""
    return config.mode or os.environ.get("WANDB_MODE") or "online"


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file; a cell that was not logged is absent. A line cut by a kill is dropped.

    Raises:
        CheckpointError: it holds something else.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text().splitlines(keepends=True)
        rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
        if rows and not set(STEPS) & rows[0].keys():
            raise ValueError("its first line names no step")
        return [
            {name: int(cell) if name in STEPS else float(cell) for name, cell in row.items() if cell}
            for row in rows
            if all(cell is not None for cell in row.values())
        ]
    except (ValueError, TypeError, csv.Error) as error:  # TypeError: a row with more cells than the header
        raise CheckpointError(
            f"{path} is damaged ({error}): restore it, or remove it to go without its curves"
        ) from None


class MetricsLog:
    """Collects rows of metrics over env steps or updates, and writes them as they come.

    The rows are part of a checkpoint: a resumed run goes on with those up to it, whatever happened to the file since.

    Args:
        path: the CSV file; ``None`` keeps the rows in memory. Columns that appear later are added to the header.
        step: name of the first column: ``env_steps`` or, offline, ``updates``.
        logger: what mirrors the CSV.
        title: of the mirror's run.
        hyper_parameters: sent to wandb.
        mirrored_as: names in the mirror, of metrics that have another one there.

    Attributes:
        rows: all of them, the step first.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        step: str = "env_steps",
        logger: LoggerConfig | None = None,
        title: str = "",
        hyper_parameters: Mapping[str, Any] | None = None,
        mirrored_as: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.step = path, step
        self._mirrored_as = {} if mirrored_as is None else mirrored_as
        self.rows: list[dict[str, float]] = []
        self._config = LoggerConfig() if logger is None else logger
        self._title, self._hyper_parameters = title, hyper_parameters
        self._columns: list[str] = [step]
        self._begun = False
        self._logger: Any = None
        self._run_id: str | None = None

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one row."""
        # Floats throughout, the same whether a row was written or came back from a checkpoint.
        row = {self.step: step, **{name: float(value) for name, value in metrics.items()}}
        self.rows.append(row)
        new = [name for name in row if name not in self._columns]
        self._columns += new
        if self.path is not None:
            if new or not self._begun:
                self._rewrite(self.path)
            else:
                self._append(self.path, row)
        self._begin()
        if self._logger is not None:
            for name, value in metrics.items():
                self._logger.log_scalar(self._mirrored_as.get(name, name), value, step=step)

    def state_dict(self) -> dict[str, Any]:
        """The rows, and which run of the mirror they went to."""
        return {"rows": self.rows, "run_id": self._run_id}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores :meth:`state_dict`; later rows of the file go when the next one is written."""
        self.rows = [dict(row) for row in state["rows"]]
        self._columns = list(dict.fromkeys([self.step, *(name for row in self.rows for name in row)]))
        self._run_id, self._begun = state["run_id"], False

    def close(self) -> None:
        """Completes the file; ends the wandb run or flushes TensorBoard."""
        if self.path is not None and self.rows and not self._begun:
            self._rewrite(self.path)  # nothing was logged since a checkpoint
        experiment = getattr(self._logger, "experiment", None)
        finish = getattr(experiment, "finish", None) or getattr(experiment, "close", None)
        if finish is not None:
            finish()

    def _begin(self) -> None:
        """Opens the mirror with the first row: a run that fails before has none."""
        begun, self._begun = self._begun, True
        if begun or self._config.type is None or self.path is None:
            return
        options: dict[str, Any] = {}
        if self._config.type == "wandb":
            self._run_id = self._run_id or uuid.uuid4().hex[:8]
            options["wandb_kwargs"] = {
                "mode": wandb_mode(self._config),
                "project": self._config.project,
                "id": self._run_id,  # a resumed run goes on in the same one
                "resume": "allow",
            }
        title = self._title or self.path.parent.name
        refused = import_module("wandb.errors").Error if self._config.type == "wandb" else ()
        try:
            self._logger = get_logger(self._config.type, str(self.path.parent), title, **options)
        except refused as error:
            raise UserError(
                f"wandb does not begin a run ({error}): resume=true logger.mode=offline goes on, `wandb sync` sends it"
            ) from None
        if self._config.type == "wandb" and self._hyper_parameters is not None:
            self._logger.log_hparams(dict(self._hyper_parameters))

    def _append(self, path: Path, row: dict[str, float]) -> None:
        try:
            with path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except FileNotFoundError:
            raise UserError(
                f"{path.parent} is gone: it was removed or renamed while a run wrote to it; put it back and run it "
                "again with resume=true, or begin anew"
            ) from None

    def _rewrite(self, path: Path) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(path, text.getvalue().encode())
