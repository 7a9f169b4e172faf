"""Faults that are the machine's, not the program's: said in one line that names the place and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from dsrl_torchrl.cli.signals import RESUME
from dsrl_torchrl.collect.spawned_process import WorkerKilledError
from dsrl_torchrl.errors import UserError

#: What the machine refuses, whichever file it is about, and what to do about it.
OF_MACHINE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit of the file size, ulimit -f",
    errno.EMFILE: "raise the limit of open files, ulimit -n",
    errno.ENFILE: "close other programs: the machine has no file handle left",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network file system",
}
#: What it refuses in the run folder. Elsewhere the same is the error of an env's asset, or a bug.
OF_RUN_FOLDER = {
    errno.EROFS: "choose another output=, or make it writable and run it again with resume=true",
    errno.EACCES: "choose another output=, or change the permissions and run it again with resume=true",
    errno.EPERM: "choose another output=, or change the permissions and run it again with resume=true",
    errno.ENOTDIR: "choose another output= or name=",
    errno.EISDIR: "choose another output= or name=",
    errno.EEXIST: "choose another output= or name=",
    errno.ENAMETOOLONG: "choose a shorter output= or name=",
}
#: Libraries report these by exceptions of their own, with the system's words in them.
_BY_WORDS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE)


@contextlib.contextmanager
def machine_faults(run_folder: Path | None = None) -> Iterator[None]:
    """Turns an error that a full disk, a read-only folder, a limit or a killed worker has caused into one line.

    Args:
        run_folder: where the command writes; ``None`` before it does.

    Raises:
        UserError: in that error's place; any other passes.
    """
    try:
        yield
    except WorkerKilledError as error:
        raise UserError(f"{error}; run it again: {RESUME}") from error
    except UserError:
        raise
    except Exception as error:
        line = next(filter(None, (_fault(cause, run_folder) for cause in causes(error))), None)
        if line is None:
            raise
        raise UserError(line) from error


def _fault(error: BaseException, run_folder: Path | None) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    file = getattr(error, "filename", None)
    if not isinstance(file, (str, os.PathLike)):  # none, or the number of an open one
        file = None
    if number not in OF_MACHINE | OF_RUN_FOLDER:
        number = next((known for known in _BY_WORDS if os.strerror(known) in str(error)), None)
        file = file or run_folder
    if number in OF_MACHINE:
        remedy = OF_MACHINE[number] + (", then run it again with resume=true" if run_folder is not None else "")
        file = file or run_folder
    elif number in OF_RUN_FOLDER and run_folder is not None and file is not None and _concerns(file, run_folder):
        remedy = OF_RUN_FOLDER[number]
    else:
        return None
    what = os.strerror(number)
    what = f"{what[0].lower()}{what[1:]}; {remedy}"
    return what if file is None else f"{file}: {what}"


def _concerns(file: str | os.PathLike[str], run_folder: Path) -> bool:
    """Whether it lies in the run folder, or above it."""
    path, folder = (Path(os.path.abspath(name)) for name in (file, run_folder))
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it was raised from or in the course of, each once: a ``raise`` may have made a circle."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
