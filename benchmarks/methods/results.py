"""One tidy file a suite: a row per cell and policy, sampled and by its mode, with all that tells where it came from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.methods.cells import is_done, read_record
from benchmarks.methods.matrix import Cell, Suite
from benchmarks.methods.process import FACTS
from dsrl_torchrl.cli.artifacts import MARKER
from dsrl_torchrl.data.macro_transitions import load_transitions
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.files import unseal, write_atomically
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY
from dsrl_torchrl.training.metrics_log import read_metrics

SAMPLED, MODE = "sampled", "mode"
#: Shares of success whose first env step is told.
REACHED = (0.5, 0.75, 0.9)
#: Columns of metrics.csv: success during training, on resets of its own.
CURVES = {
    SAMPLED: ("eval/success_once", "eval/success_at_end"),
    MODE: ("eval/success_once_mode", "eval/success_at_end_mode"),
}
#: What is kept of ``dsrl diagnose``'s measurement of the critics.
RANKING = "critic_ranking"

Row = dict[str, Any]
#: What tells whether a row can be joined.
ROW_KEYS = {"task", "method", "seed", "policy", "base", "options"}


def results_path(folder: Path, suite: str) -> Path:
    """The file of a suite's rows."""
    return folder / f"methods_{suite}.json"


def gather(suite: Suite, before: Sequence[Row] = ()) -> list[Row]:
    """The rows of the cells that are done here; of the others, those of ``before``, made elsewhere with these options.

    Raises:
        UserError: two cells of a task and seed had different base policies, here or there. Trained on another kind of
            processor, a base policy differs by its last bits, and what stands in a table should be one.
    """
    rows: list[Row] = []
    made_here = dict.fromkeys(cell.shared for cell in suite.cells if is_done(cell.shared))
    bases = {(one.task, one.seed): json.loads((one.folder / FACTS).read_text())["base"] for one in made_here}
    for cell in [cell for cell in suite.cells if is_done(cell)]:
        made = cell_rows(cell)
        base = made[0]["base"]
        if bases.setdefault((cell.task, cell.seed), base) != base:
            raise UserError(f"{cell.name} had another base policy than the cells before it: remove {cell.folder}")
        rows += made
    here = {cell_name(row) for row in rows}
    cells = {cell.name: cell for cell in suite.cells if cell.name not in here}
    for row in before:
        cell = cells.get(cell_name(row))
        if cell is None or row["options"] != list(cell.options):
            continue
        base = bases.setdefault((row["task"], row["seed"]), row["base"])
        if base != row["base"]:
            raise UserError(
                f"the results so far have {cell.name} of another base policy ({row['base'][:8]}, here {base[:8]}): "
                f"give results=<another folder>, or remove the rows of {row['task']}'s seed {row['seed']}"
            )
        rows.append(row)
    order = {cell.name: i for i, cell in enumerate(suite.cells)}
    return sorted(rows, key=lambda row: order[cell_name(row)])


def check_kept(suite: Suite, rows: Sequence[Row], path: Path) -> None:
    """Refuses to leave rows of the file out that no cell here replaces.

    Raises:
        UserError: rows with other options than the suite's, or of no cell of it.
    """
    options = {cell.name: list(cell.options) for cell in suite.cells}
    here = {cell.name for cell in suite.cells if is_done(cell)}
    lost = [row for row in rows if cell_name(row) not in here and options.get(cell_name(row)) != row["options"]]
    if lost:
        names = list(dict.fromkeys(map(cell_name, lost)))
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise UserError(
            f"{len(lost)} rows of {path} have other options than suite={suite.name}, or are of no cell of it "
            f"({some}): remove them, or give results=<another folder>"
        )


def cell_name(row: Row) -> str:
    """Of the cell that a row is from."""
    return f"{row['task']}/{row['method']}/seed{row['seed']}"


def cell_rows(cell: Cell) -> list[Row]:
    """Of one finished cell: its policy sampled, then its mode."""
    summary = json.loads((cell.folder / "summary.json").read_text())
    record, stage1 = read_record(cell), summary["stage1"]
    attempts = record["attempts"]
    rollouts = rollout_env_steps(cell.folder) if cell.rollouts else 0
    before = rollouts + summary.get("centre", {}).get("env_steps", 0)  # a summary may be older than it
    subspace = cell.folder / "subspace" / MARKER
    if subspace.exists():
        before += unseal(subspace)["facts"].get("env_steps", 0)  # likewise
    online = summary["env_steps"]
    seconds = stage1.get("wall_seconds", 0.0) + summary["wall_seconds"]
    metrics = read_metrics(cell.folder / "metrics.csv")
    common = {
        "task": cell.task,
        "method": cell.method,
        "seed": cell.seed,
        "family": cell.spec.family,
        "env_steps": before + online,
        "rollout_env_steps": rollouts,
        "updates": stage1.get("updates", 0) + summary["updates"],
        "learning_seconds": round(seconds, 1),
        "cell_seconds": round(sum(attempt["wall_seconds"] for attempt in attempts), 1),
        "cpu_seconds": round(sum(attempt["cpu_seconds"] for attempt in attempts), 1),
        "dip_env_steps": summary["longest_dip_env_steps"] if online else None,
        "ranking": _ranking(cell.folder),
        "base": record["base"],
        # Of a cell that was gone on with, all; records before there was one for each attempt have the last.
        "commit": ", ".join(dict.fromkeys(filter(None, (one.get("commit", record.get("commit")) for one in attempts)))),
        "options": record["options"],
        "versions": summary["versions"],
    }
    rows = []
    for policy, name in zip((SAMPLED, MODE), cell.spec.policies, strict=True):
        found = summary["evaluations"][name]
        curve = learning_curve(metrics, policy, before, online, stage1.get("wall_seconds", 0.0), seconds)
        counts = {
            measure: round(found[measure]["value"] * found[measure]["n"])
            for measure in ("success_once", "success_at_end")
        }
        episodes = {"episodes": found["success_once"]["n"]}
        rows.append(common | {"policy": policy} | episodes | counts | {"reached": reached(curve), "curve": curve})
    return rows


def learning_curve(
    metrics: Sequence[dict[str, float]], policy: str, rollouts: int, online: int, before: float, seconds: float
) -> list[dict[str, float]]:
    """Success during training: env steps (rollouts and search too), learning seconds, success_once, success_at_end.

    ``metrics.csv`` holds no clock, on purpose: the online stage's seconds are shared out evenly over its env steps.
    """
    once, at_end = CURVES[policy]
    return [
        {
            "env_steps": rollouts + int(row["env_steps"]),
            "seconds": round(before + (seconds - before) * row["env_steps"] / max(online, 1), 1),
            "success_once": row[once],
            "success_at_end": row[at_end],
        }
        for row in metrics
        if once in row and at_end in row
    ]


def reached(curve: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Env steps, rollouts and search too, until success_once during training is first at each of :data:`REACHED`."""
    return {
        f"{share:.0%}": next((point["env_steps"] for point in curve if point["success_once"] >= share), None)
        for share in REACHED
    }


def rollout_env_steps(folder: Path) -> int:
    """Env steps of the offline rollouts that a cell learned from."""
    path = folder / "stage1" / "rollouts.safetensors"
    return int(load_transitions(path)["next", STEPS_KEY].sum()) if path.exists() else 0


def write_results(path: Path, suite: Suite, rows: Sequence[Row]) -> None:
    """Writes the rows, one a line, atomically."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    write_atomically(path, f'{{"suite": {json.dumps(suite.name)}, "rows": [\n{lines}\n]}}\n'.encode())


def read_rows(path: Path) -> list[Row]:
    """The rows of :func:`write_results`; none where there is no file.

    Raises:
        UserError: the file is damaged, or another one.
    """
    if not path.exists():
        return []
    try:
        rows = list(json.loads(path.read_text())["rows"])
        whole = all(row.keys() >= ROW_KEYS for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{path} holds no rows of this benchmark: restore it, or give results=<another folder>")
    return rows


def _ranking(folder: Path) -> dict[str, Any] | None:
    """How the learned critics rank noises, where that was measured: numbers alone."""
    path = folder / "diagnosis" / "steerability.json"
    found = json.loads(path.read_text()).get(RANKING) if path.exists() else None
    return found if isinstance(found, dict) else None
