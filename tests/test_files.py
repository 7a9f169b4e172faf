"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from dsrl_torchrl.files import sweep, write_atomically

KILLED = """
import os, signal, sys
from pathlib import Path
from dsrl_torchrl.files import write_atomically

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
    sweep(tmp_path)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == [".lock", "below", "a.json"]
    assert path.read_bytes() == b"old"
