"""The smallest run of the whole pipeline, and how tests wait for it and misuse it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dsrl_torchrl.cli.main import main

from ..processes import wait_until

SMOKE = ["task=toy", "experiment=smoke", "collector.num_workers=1", "progress=false"]
#: The same, and the actors are trained from early on.
TINY = [*SMOKE, "algorithm.critic_only_updates=5", "stage1.algorithm.critic_only_updates=5"]
#: Long enough that stage 2 is still running when something happens to it, however slow the machine is.
ENDLESS = [*TINY, "stage2.total_env_steps=100000"]


def loaded(folder):
    """A base policy that exists already."""
    return ["base_policy=checkpoint", f"base_policy.load.folder={folder}"]


def fails(capsys, *arguments):
    """The one line that a mistake prints; exit code 1."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("dsrl: error: ")
    assert "\n" not in error
    return error


def start(*arguments, **options):
    """The command in a process that imports all of it; the fixture ``start`` has forked ones."""
    command = [sys.executable, "-m", "dsrl_torchrl", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def wait_for(path, command):
    """Until a file of that pattern is there."""
    wait_until(lambda: list(path.parent.glob(path.name)) or not command.running)
    assert list(path.parent.glob(path.name)), command.wait()


def one_line(error):
    """What a command printed on stderr, which is one line and no traceback."""
    lines = [line for line in error.splitlines() if line.strip()]
    assert len(lines) == 1, error
    assert lines[0].startswith("dsrl: ")
    return lines[0]


def ends(command, code):
    """Waits for a command that ends with ``code`` and leaves nobody; returns the one line that it printed on stderr."""
    end = command.wait()
    assert end.code == code, end.stderr
    return one_line(end.stderr)
