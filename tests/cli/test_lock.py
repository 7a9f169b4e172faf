"""One command at a time in a run folder, and no folder where nothing was done."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from dsrl_torchrl.cli.lock import locked
from dsrl_torchrl.errors import UserError

HOLD = """
import sys
from pathlib import Path
from dsrl_torchrl.cli.lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_told_who_has_it_and_touches_nothing(tmp_path, holder):
    before = (tmp_path / "run" / ".lock").read_text()
    with (
        pytest.raises(UserError, match=rf"in use by process {holder.pid} on .* since 2.*name="),
        locked(tmp_path / "run"),
    ):
        pytest.fail("two have the lock")
    assert (tmp_path / "run" / ".lock").read_text() == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_kill_nine_releases_it(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / ".lock").read_text()


def test_a_folder_that_stays_empty_is_removed_with_the_parents_that_were_made(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="a check"), locked(tmp_path / "there" / "a" / "b"):
        raise UserError("a check failed")
    assert list((tmp_path / "there").iterdir()) == []


def test_what_was_written_stays(tmp_path):
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "result").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_is_worked_on(tmp_path, monkeypatch, code):
    def refuse(descriptor, operation):
        raise OSError(code, "no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "result").touch()
    assert (tmp_path / "a" / "result").exists()


@pytest.mark.parametrize("code", [errno.EWOULDBLOCK, errno.EACCES])
def test_whatever_a_file_system_calls_a_lock_that_is_taken(tmp_path, monkeypatch, code):
    """EACCES: what CIFS may answer."""

    def refuse(descriptor, operation):
        raise OSError(code, "taken")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match="a is in use by another process"), locked(tmp_path / "a"):
        raise AssertionError
