"""A signal before the work has begun: while modules are imported."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from .pipeline_run import TINY, one_line

INTERRUPTED = """
import os, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), int(sys.argv[2]))

sys.meta_path.insert(0, Interrupt())
from dsrl_torchrl.cli.main import main
main(sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("module", "number", "code"),
    [
        ("dsrl_torchrl.cli.compose", signal.SIGINT, 130),
        ("hydra", signal.SIGTERM, 143),
        ("torch", signal.SIGINT, 130),
        ("dsrl_torchrl.cli.run", signal.SIGTERM, 143),
    ],
)
def test_a_signal_while_modules_are_imported_is_one_line(tmp_path, module, number, code):
    command = [sys.executable, "-c", INTERRUPTED, module, str(int(number)), "stage2", *TINY]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []
