"""A signal before the work has begun, while modules are imported, or in somebody else's process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from dsrl_torchrl.cli.main import main

from .pipeline_run import TINY, one_line

INTERRUPTED = """
import os, sys

arguments = sys.argv[1:3]
del sys.argv[1:3]

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == arguments[0]:
            os.kill(os.getpid(), int(arguments[1]))

sys.meta_path.insert(0, Interrupt())
from dsrl_torchrl.cli.main import main
main()
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("working", [False, True])
def test_a_signal_does_not_end_a_process_that_only_calls_the_command(monkeypatch, number, working):
    """As a notebook does; its handlers are there again afterwards."""

    def interrupted(arguments, interruption):
        interruption.working = working
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # the clean-up is interrupted, too

    monkeypatch.setattr("dsrl_torchrl.cli.main._main", interrupted)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as stopped:
        main(["run"])
    assert stopped.value.code == 128 + number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
