"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys

import pytest

from dsrl_torchrl.files import remove_folder, sweep, write_atomically

KILLED = """
import os, signal, sys
from pathlib import Path
from dsrl_torchrl.files import write_atomically, remove_folder

os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), b"new")
"""


def test_what_a_kill_left_is_swept_and_nothing_else(tmp_path):
    path = tmp_path / "below" / "a.json"
    write_atomically(path, b"old")
    (tmp_path / ".lock").touch()
    done = subprocess.run([sys.executable, "-c", KILLED, path], env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 2
    sweep(tmp_path, own=["elsewhere"])
    assert len(list(path.parent.iterdir())) == 2
    sweep(tmp_path, own=["below"])
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == [".lock", "below", "a.json"]
    assert path.read_bytes() == b"old"


def test_the_umask_decides_who_may_read(tmp_path):
    for umask, mode in ((0o077, 0o600), (0o002, 0o664)):
        before = os.umask(umask)
        try:
            write_atomically(tmp_path / "a.json", b"new")
        finally:
            os.umask(before)
        assert (tmp_path / "a.json").stat().st_mode & 0o777 == mode


def test_a_folder_that_was_moved_to_another_disk_is_unlinked(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoint").symlink_to(tmp_path / "elsewhere")
    remove_folder(tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def test_a_file_system_whose_folders_cannot_be_synced(tmp_path, monkeypatch):
    """Shared folders of virtual machines and some of FUSE; a file that cannot be synced is an error."""
    fsync, refused = os.fsync, stat.S_ISDIR

    def only_others(descriptor):
        if refused(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_others)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    refused = stat.S_ISREG
    with pytest.raises(OSError, match="Invalid"):
        write_atomically(tmp_path / "file", b"newer")
    assert (tmp_path / "file").read_bytes() == b"new"
