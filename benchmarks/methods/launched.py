"""Cells spread by one of Hydra's launchers: joblib on this machine, submitit on a cluster; a job each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.methods.cells import is_done, run_cells, run_jobs
from benchmarks.methods.matrix import Cell, read_suite
from dsrl_torchrl.cli.sweep import launched_line, make_launcher
from dsrl_torchrl.errors import UserError


def launch_cells(
    cells: Sequence[Cell], suite: str, output: Path, words: Sequence[str], jobs: int, say: Callable[[str], None]
) -> list[str]:
    """Makes here what the cells share, ``jobs`` at a time; then the launcher has the cells.

    Returns:
        One line for each that failed.

    Raises:
        UserError: a launcher that is not there, found before any work; or one that fails as a whole.
    """
    task = partial(run_launched, suite, str(output), os.getcwd())
    launcher = make_launcher(words, task, os.path.abspath(output / suite))
    shared = [one for one in dict.fromkeys(cell.shared for cell in cells) if not is_done(one)]
    failures = run_jobs(shared, max(jobs, 1), say)
    ready = [cell for cell in cells if is_done(cell.shared)]
    failures += [f"{cell.name}: {cell.shared.name} failed" for cell in cells if not is_done(cell.shared)]
    if not ready:
        return failures
    say(f"{len(ready)} cells: {' '.join(words)}")
    try:
        returned = [done.return_value for done in launcher.launch([[f"++cell={cell.name}"] for cell in ready], 0)]
    except Exception as error:  # the launcher's own: its processes were killed, its cluster refused
        raise UserError(f"{' '.join(words)} failed ({type(error).__name__}: {' '.join(str(error).split())})") from error
    return failures + [line for lines in returned for line in lines]


def run_launched(suite: str, output: str, cwd: str, _: Any) -> list[str]:
    """In the launcher's process: the cell that the line names; its failure, if any."""
    os.chdir(cwd)
    (name,) = (word.removeprefix("cell=") for word in launched_line())
    return run_cells(read_suite(suite, Path(output)).select(name), 1)
