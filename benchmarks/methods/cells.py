"""Runs cells side by side, each a process of its own; whatever ends this, the same command goes on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.methods.matrix import Cell, Shared
from benchmarks.methods.process import FACTS, command
from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.config_differences import filled
from dsrl_torchrl.cli.folder import RunFolder, loaded_key
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.files import unseal, write_atomically, write_json
from dsrl_torchrl.policies import load_policy

ROOT = Path(__file__).parents[2]
RECORD, LOG = "cell.json", "cell.log"
#: Seconds that a cell has to end after Ctrl-C.
PATIENCE = 20.0
POLL_SECONDS = 0.1


@dataclass
class Running:
    """A process under way."""

    job: Cell | Shared
    process: subprocess.Popen[bytes]
    started: float
    commit: str | None


def is_done(job: Cell | Shared) -> bool:
    """Whether it finished, a cell with these options."""
    if isinstance(job, Shared):
        return (job.folder / FACTS).exists()
    record = read_record(job)
    return (
        bool(record.get("finished")) and record["options"] == list(job.options) and record["steps"] == list(job.steps)
    )


def read_record(cell: Cell) -> dict[str, Any]:
    """What the harness notes of a cell: its options, and commit, wall and CPU seconds of each attempt."""
    path = cell.folder / RECORD
    return dict(json.loads(path.read_text())) if path.exists() else {}


def check_unchanged(cells: Sequence[Cell]) -> None:
    """Refuses what was made with other words than the suite says now, before any work.

    ``dsrl`` cannot tell all of it: to a cell its base policy is a checkpoint, however that was trained, and who asks
    for other evaluations of a finished run is given the old ones.

    Raises:
        UserError: a folder, in what its words differ, and that it has to go.
    """
    for shared in dict.fromkeys(cell.shared for cell in cells):
        facts = json.loads((shared.folder / FACTS).read_text()) if is_done(shared) else {}
        _check_words(shared.folder, facts.get("words", list(shared.words)), shared.words)  # it may be older than them
    for cell in cells:
        _check_words(cell.folder, read_record(cell).get("options", list(cell.options)), cell.options)


def _check_words(folder: Path, made: Sequence[str], asked: Sequence[str]) -> None:
    if list(made) != list(asked):
        differ = sorted({*made} ^ {*asked}) or ["their order"]
        raise UserError(
            f"{folder} was made with other options ({', '.join(differ)} differ): remove it to have it made again, with "
            "a frozen policy the cells that began from it, too; or choose another output="
        )


def run_cells(cells: Sequence[Cell], jobs: int, say: Callable[[str], None] = print) -> list[str]:
    """Runs those that are not done, ``jobs`` at a time, and before them what they share.

    Returns:
        One line for each that failed.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; its processes have ended.
    """
    todo: list[Cell | Shared] = []
    for cell in cells:
        if is_done(cell):
            continue
        if not is_done(cell.shared) and cell.shared not in todo:
            todo.append(cell.shared)
        todo.append(cell)
    return run_jobs(todo, jobs, say)


def run_jobs(jobs: Sequence[Cell | Shared], side_by_side: int, say: Callable[[str], None]) -> list[str]:
    """Runs them all in their order, each cell once what it shares is done. See :func:`run_cells`."""
    todo, total = list(jobs), len(jobs)
    running: list[Running] = []
    failures: list[str] = []
    with _interruptible() as check:
        try:
            while todo or running:
                check()
                going = [*todo, *(one.job for one in running)]
                for job in list(todo):
                    if isinstance(job, Cell) and job.shared not in going and not is_done(job.shared):
                        todo.remove(job)
                        failures.append(f"{job.name}: {job.shared.name} failed")
                ready = [job for job in todo if isinstance(job, Shared) or is_done(job.shared)]
                for job in ready[: side_by_side - len(running)]:
                    todo.remove(job)
                    try:
                        running.append(start(job))
                        say(f"[{total - len(todo)}/{total}] {job.name}: started")
                    except (UserError, OSError) as error:
                        failures.append(f"{job.name}: {error}")
                        say(failures[-1])
                for one in list(running):
                    line = _ended(one)
                    if line is None:
                        continue
                    running.remove(one)
                    say(f"{one.job.name}: {line or f'done in {time.monotonic() - one.started:.0f} s'}")
                    failures += [f"{one.job.name}: {line}"] if line else []
                time.sleep(POLL_SECONDS)
        except BaseException:
            _end(running)
            raise
    return failures


def start(job: Cell | Shared) -> Running:
    """Starts the process of a cell, which finds the rollouts of its task there if they are what it would collect.

    Raises:
        UserError: the base policy is not the one that the other methods had.
    """
    if isinstance(job, Cell):
        _check_base(job)
        if job.rollouts:
            _share_rollouts(job)
        line = command(job.steps, job.words)
    else:
        line = command(["frozen"], [str(job.folder), str(job.rollouts), *job.words])
    job.folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()}
    with (job.folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            line,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
    return Running(job, process, time.monotonic(), commit())


def _ended(one: Running) -> str | None:
    """``None`` while it runs; then its failure in a line, or nothing."""
    pid, status, usage = os.wait4(one.process.pid, os.WNOHANG)
    if pid == 0:
        return None
    one.process.returncode = code = os.waitstatus_to_exitcode(status)
    job, seconds = one.job, time.monotonic() - one.started
    if isinstance(job, Cell):
        attempts = read_record(job).get("attempts", [])
        cost = {"wall_seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        attempts.append(cost | {"commit": one.commit, "exit_code": code})
        write_json(
            job.folder / RECORD,
            {
                "options": list(job.options),
                "steps": list(job.steps),
                "base": json.loads((job.shared.folder / FACTS).read_text())["base"],
                "attempts": attempts,
                "finished": code == 0,
            },
        )
        if code == 0:  # its agents and records stay; what only an interrupted run needs is hundreds of megabytes
            for checkpoints in job.folder.glob("stage*/checkpoints"):
                shutil.rmtree(checkpoints)
    return "" if code == 0 else _last_line(job.folder / LOG, code)


def _end(running: Sequence[Running]) -> None:
    for one in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGTERM)  # a shell's background job ignores SIGINT
    deadline = time.monotonic() + PATIENCE
    left = list(running)
    while left and time.monotonic() < deadline:
        left = [one for one in left if _ended(one) is None]
        time.sleep(POLL_SECONDS)
    for one in left:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Gives a function that raises ``KeyboardInterrupt`` if Ctrl-C or SIGTERM came.

    Not where they come: a process that has just begun must be among those that are ended. What is ignored stays so.
    """
    received: list[int] = []

    def check() -> None:
        if received:
            raise KeyboardInterrupt

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.signal(n, lambda number, frame: received.append(number)) for n in numbers}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_base(cell: Cell) -> None:
    frozen = json.loads((cell.shared.folder / FACTS).read_text())["base"]
    found = load_policy(cell.shared.base).content_hash()
    if found != frozen:
        raise UserError(f"{cell.shared.base} was changed: {frozen[:12]} was made, {found[:12]} is there now")


def _share_rollouts(cell: Cell) -> None:
    """Copies the task's rollouts into the cell; one with another discount or noise layout collects its own."""
    source, target = cell.shared.folder / "rollouts" / "stage1", cell.folder / "stage1"
    if not (source / "rollouts.json").exists() or (target / "rollouts.json").exists():
        return
    config = compose(cell.words)
    key = loaded_key(config, load_policy(cell.shared.base).content_hash())
    own = RunFolder(config, key).rollouts
    there = filled(unseal(source / "rollouts.json")["config"], own.default)  # they may be older than an option
    if there != own.config:
        return
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "rollouts.safetensors", target / "rollouts.safetensors")
    write_atomically(target / "rollouts.json", (source / "rollouts.json").read_bytes())  # the marker last


def _last_line(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    return f"{how}: {lines[-1] if lines else 'it said nothing'} ({log})"


def commit() -> str | None:
    """Of this tree; with a plus where tracked files differ from it."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed else "")


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
