"""Disks that are full, files that may not grow, folders that may not be written."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .commands import End, Forks
from .references import Reference, arguments
from .results import differences, results
from .tally import Tally

NO_SPACE, TOO_LARGE = "no space left.*resume=true", "file too large.*resume=true"
#: A step's folder, or the whole run's.
READ_ONLY = "read-only.*resume=true|that may be written"


def may_mount(scratch: Path) -> bool:
    """Whether this user may mount a tmpfs."""
    try:
        with tmpfs(scratch / "mount", "size=1m"):
            return True
    except subprocess.CalledProcessError:
        return False


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """A small file system at ``folder``, and a function that mounts it again with other options."""

    def mount(*arguments: str | Path) -> None:
        subprocess.run(["mount", *arguments], check=True, capture_output=True)

    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", options, "tmpfs", folder)
    try:
        yield lambda options: mount("-o", f"remount,{options}", folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def full_disk(tally: Tally, forks: Forks, reference: Reference, *, scratch: Path, draw: random.Random) -> None:
    """A disk with less room than the run takes; then it grows."""
    size = draw.randrange(4096, sum(path.stat().st_size for path in reference.folder.rglob("*")), 4096)
    with tmpfs(scratch / "disk", f"size={size}") as again:
        end = forks.run(arguments(scratch / "disk"), scratch / "full")
        again("size=64m")
        _goes_on(tally, forks, reference, scratch, "disk full", f"{size} bytes", end, NO_SPACE)


def full_disk_in_between(
    tally: Tally, forks: Forks, reference: Reference, *, scratch: Path, draw: random.Random
) -> None:
    """A disk with room for a part of the rest of the run, which was killed somewhere."""
    with tmpfs(scratch / "disk", "size=64m") as again:
        fault = (draw.randint(1, len(reference.operations)), 9)
        forks.run(arguments(scratch / "disk"), scratch / "killed", folder=scratch / "disk" / "a", fault=fault)
        used = shutil.disk_usage(scratch / "disk").used
        again(f"size={used + 4096 * draw.randint(1, 40)}")
        end = forks.run(arguments(scratch / "disk", "resume=true"), scratch / "full")
        again("size=64m")
        told = f"{fault}, {used}"
        _goes_on(tally, forks, reference, scratch, "disk full", told, end, NO_SPACE)


def file_size(tally: Tally, forks: Forks, reference: Reference, *, scratch: Path, draw: random.Random) -> None:
    """A limit that one of the run's files is above."""
    sizes = sorted({path.stat().st_size for path in reference.folder.rglob("*") if path.is_file()})
    limit = draw.choice(sizes[1:]) - 1
    end = forks.run(arguments(scratch / "disk"), scratch / "limited", file_size=limit)
    _goes_on(tally, forks, reference, scratch, "file size limit", f"{limit} bytes", end, TOO_LARGE)


def read_only_step(
    tally: Tally, forks: Forks, reference: Reference, step: str, *, scratch: Path, draw: random.Random
) -> None:
    """One step's folder, or the whole run's, is on a read-only file system; then it may be written."""
    with tmpfs(scratch / "disk" / "a" / step, "size=64m") as again:
        again("ro")
        end = forks.run(arguments(scratch / "disk", "resume=true"), scratch / "read-only")
        again("rw")
        _goes_on(tally, forks, reference, scratch, "read-only folder", step, end, READ_ONLY)


def no_folder(
    tally: Tally, forks: Forks, reference: Reference, output: str, *, scratch: Path, draw: random.Random
) -> None:
    """An output that is no folder, or lies below something that is none."""
    (scratch / "file").write_text("kept")
    wrong = forks.run(arguments(scratch / output), scratch / "refused").wrong(1, line="error: .*choose another output=")
    kept = (scratch / "file").read_text() == "kept"
    tally.add("output that is no folder", "one line" if wrong is None and kept else "wrong", f"{output}: {wrong}")


def _goes_on(
    tally: Tally, forks: Forks, reference: Reference, scratch: Path, kind: str, told: str, end: End, line: str
) -> None:
    """The command failed in one line; now that nothing hinders it, it must come to the reference's results."""
    output, told = scratch / "disk", f"{scratch}: {told}:"
    wrong = end.wrong(1, line=f"error: .*(?:{line})") if end.code else end.wrong(0)
    if wrong is not None:
        tally.add(kind, "wrong", f"{told} {wrong}")
        return
    again = forks.run(arguments(output, "resume=true"), scratch / "resumed")
    lost = again.wrong(0) or differences(results(output / "a"), reference.results)
    tally.add(kind, "lost" if lost else "one line" if end.code else "no line", f"{told} {lost}")
