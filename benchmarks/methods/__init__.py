"""Every method on the same frozen base policies: same resets, same env steps, resumable cell by cell.

    python -m benchmarks methods suite=smoke              # every method for a few steps, on a toy task
    python -m benchmarks methods suite=small              # some 35 CPU hours; only= chooses cells
    python -m benchmarks methods suite=small only=pick_cube/dsrl_*/0    # <task>/<method>/<seed>, shell wildcards
    python -m benchmarks methods suite=small hydra/launcher=joblib hydra.launcher.n_jobs=8    # or submitit_slurm
    python -m benchmarks methods suite=small jobs=0       # runs nothing: results and report of what is there

Methods are entries of ``benchmarks/methods/methods.yaml``, suites files in ``benchmarks/methods/suites/``. A cell is a
run folder ``<output>/<suite>/<task>/<method>/seed<k>`` of ``dsrl``; the same command goes on after Ctrl-C or a kill.
``results`` (``output``, where it is not given) gets ``methods_<suite>.json``; the report is
``<output>/<suite>/report.html`` and ``report.md``. More is in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from dsrl_torchrl.errors import UserError

if TYPE_CHECKING:
    from benchmarks.methods.matrix import Cell

#: Cells at a time: a core each.
MAX_JOBS = 256


@dataclass(frozen=True)
class Words:
    """The command line, ``name=value`` each."""

    suite: str = ""
    jobs: int = 2
    only: str = "*"
    output: Path = Path("runs/benchmarks")
    results: Path | None = None  #: ``None``: in ``output``. The committed ones are for whoever asks for it
    launcher: tuple[str, ...] = ()  #: ``hydra/launcher=...`` and its options


#: Words of its own; the launcher's are Hydra's.
NAMES = [field.name for field in fields(Words) if field.name != "launcher"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="name=value", help="suite=, jobs=, only=, output=, results=, hydra/launcher="
    )


def main(arguments: argparse.Namespace) -> None:
    # Not at the top: `python -m benchmarks update` needs none of it.
    from benchmarks.methods.cells import check_unchanged, is_done, run_cells
    from benchmarks.methods.launched import launch_cells
    from benchmarks.methods.matrix import read_suite, suite_names
    from benchmarks.methods.report import write_report
    from benchmarks.methods.results import cell_name, check_kept, gather, read_rows, results_path, write_results

    words = read_words(arguments.words)
    if not words.suite:
        raise UserError(f"suite=<name> is needed: one of {', '.join(suite_names())}")
    suite = read_suite(words.suite, words.output)
    chosen = suite.select(words.only)
    todo = [cell for cell in chosen if not is_done(cell)]
    print(f"suite {suite.name}: {len(chosen)} of {len(suite.cells)} cells, {len(chosen) - len(todo)} done", flush=True)
    file = results_path(words.results or words.output, suite.name)
    before = read_rows(file)
    check_kept(suite, before, file)
    gather(suite, before)  # what cannot be joined is said before the work
    if words.jobs:
        check_unchanged(chosen)
    failures, interrupted = [], False
    try:
        if words.launcher and words.jobs:
            failures = launch_cells(todo, suite.name, words.output, words.launcher, words.jobs, _say)
        elif words.jobs:
            failures = run_cells(todo, words.jobs, _say)
    except KeyboardInterrupt:
        interrupted = True
    rows = gather(suite, read_rows(file))
    if rows:
        write_results(file, suite, rows)
    there = {cell_name(row) for row in rows}
    left = missing_lines([cell for cell in suite.cells if cell.name not in there], words)
    written = write_report(words.output / suite.name, suite.name, suite.what, rows, left)
    _say(", ".join(map(str, [*([file] if rows else []), *written])))
    for line in left:
        _say(line)
    if interrupted:
        raise SystemExit(130)
    if failures:
        raise UserError(f"{len(failures)} failed: {'; '.join(failures)}")


def missing_lines(cells: Sequence[Cell], words: Words) -> list[str]:
    """What was not run, a line a task, and the command that runs it."""
    if not cells:
        return []
    seeds: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        seeds.setdefault(cell.task, {}).setdefault(cell.method, []).append(str(cell.seed))
    lines = []
    for task, methods in seeds.items():
        lines.append(f"{task}: " + ", ".join(f"{method} ({', '.join(which)})" for method, which in methods.items()))
    own = {name: getattr(words, name) for name in NAMES if name != "only"}
    given = [f"{name}={value}" for name, value in own.items() if value != getattr(Words(), name)]
    given = [word for word in given if word != "jobs=0"]
    command = shlex.join(["python", "-m", "benchmarks", "methods", *given, *words.launcher])
    return [f"Cells that were not run (seeds): {len(cells)}", *lines, f"`{command}`"]


def read_words(words: Sequence[str]) -> Words:
    """Checks names and values.

    Raises:
        UserError: a word that is none.
    """
    from dsrl_torchrl.cli.sweep import LAUNCHER

    values: dict[str, object] = {"launcher": tuple(word for word in words if LAUNCHER.fullmatch(word))}
    for word in words:
        name, separator, value = word.partition("=")
        if word in values["launcher"]:
            continue
        if not separator or not value or name not in NAMES:
            raise UserError(f"expected {', '.join(f'{name}=' for name in NAMES)} or hydra/launcher=, got {word!r}")
        values[name] = value
        if name in ("output", "results"):
            values[name] = path = Path(value)
            if any(part.is_file() for part in (path, *path.parents)):
                raise UserError(f"{name} should be a folder, {value} is none")
    jobs = values.get("jobs", "2")
    if not (str(jobs).isdecimal() and int(str(jobs)) <= MAX_JOBS):
        raise UserError(f"jobs should be the number of cells side by side, 0 to {MAX_JOBS}, got {jobs!r}")
    return Words(**(values | {"jobs": int(str(jobs))}))  # type: ignore[arg-type]


def _say(line: str) -> None:
    print(line, flush=True)
