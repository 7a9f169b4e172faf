"""One command at a time in a run folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from dsrl_torchrl.errors import UserError

FILE = ".lock"
#: What file systems without locks answer.
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock on a run folder, which is made if need be; one that is still empty at the end is removed again.

    The kernel holds it (``flock`` on ``<folder>/.lock``), so it ends with the process, however that ends. Over NFS it
    holds between machines where the server has locks. On a file system without locks there is none: two runs in one
    folder are not told apart there.

    Raises:
        UserError: another process has it; nothing in the folder has been touched.
        OSError: the folder cannot be made or written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / FILE
    try:
        descriptor = _take(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        with contextlib.suppress(OSError):  # not empty
            for parent in made:
                parent.rmdir()


def _take(path: Path) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # what /proc answers
            raise UserError(f"{path.parent} cannot be made: choose another output=") from None
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(descriptor, path)
            # Its owner removes the file at the end; between our open and our lock that may just have happened.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                os.truncate(descriptor, 0)
                since = datetime.now().astimezone().isoformat(" ", "seconds")
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # CIFS answers the second
        owner = os.read(descriptor, 500).decode(errors="replace") or "another process"
        raise UserError(f"{path.parent} is in use by {owner}: wait for it or end it, or choose another name=") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
