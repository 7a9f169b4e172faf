"""Faults that are the machine's, not the program's: said in one line that names the place and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from dsrl_torchrl.errors import UserError

#: What a file system or the operating system refuses, and what to do about it.
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit of the file size, ulimit -f",
    errno.EROFS: "choose another output=",
    errno.EACCES: "choose another output=, or change the permissions",
    errno.EPERM: "choose another output=, or change the permissions",
    errno.ENOTDIR: "choose another output= or name=",
    errno.EISDIR: "choose another output= or name=",
    errno.EEXIST: "choose another output= or name=",
    errno.ENAMETOOLONG: "choose a shorter output= or name=",
    errno.EMFILE: "raise the limit of open files, ulimit -n",
    errno.ENFILE: "close other programs: the machine has no file handle left",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the network file system",
}
#: Libraries report these by exceptions of their own, with the system's words in them.
_BY_WORDS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE)


@contextlib.contextmanager
def machine_faults(place: Path) -> Iterator[None]:
    """Turns an error that a full disk, a read-only folder or a limit has caused into one line.

    Args:
        place: where the command writes, for an error that names no file.

    Raises:
        UserError: in that error's place; any other passes.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = next(filter(None, (_fault(cause, place) for cause in causes(error))), None)
        if line is None:
            raise
        raise UserError(line) from error


def _fault(error: BaseException, place: Path) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    if number not in REMEDIES:
        number = next((known for known in _BY_WORDS if os.strerror(known) in str(error)), None)
    if number is None:
        return None
    file = getattr(error, "filename", None) or place
    what = os.strerror(number)
    return f"{file}: {what[0].lower()}{what[1:]}; {REMEDIES[number]}, then run it again with resume=true"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it was raised from or in the course of, each once: a ``raise`` may have made a circle."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
