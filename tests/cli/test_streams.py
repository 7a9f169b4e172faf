"""What the command says where nobody reads it, or a terminal knows no other letters than ASCII's."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from .pipeline_run import SMOKE, TINY, fails, loaded

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

DSRL = [sys.executable, "-m", "dsrl_torchrl"]


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_stream(tmp_path, closed):
    """A progress bar is shown, and no file of the run gets what was meant for the stream."""
    command = shlex.join([*DSRL, "demos", *SMOKE, "progress=true", "name=a"])
    done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run(["sh", "-c", f"{shlex.join([*DSRL, 'stage3'])} {closed}"], capture_output=True, text=True)
    assert done.returncode == 1
    assert not done.stdout and ("unknown step" in done.stderr) == ("2>" not in closed)


@pytest.mark.parametrize("words", [["x" * 100_000], ["stage3\n" * 1000]])
def test_a_long_unknown_step_is_not_repeated_in_full(capsys, words):
    assert len(fails(capsys, *words)) < 300


def test_a_closed_pipe_ends_the_command_quietly():
    """As in ``dsrl ... | head -1``, when ``head`` has ended."""
    read, write = os.pipe()
    os.close(read)
    command = [*DSRL, "stage2", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.slow
def test_an_ascii_terminal_gets_every_line(finished):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [*DSRL, "stage1", *TINY, *loaded(finished / "a" / "base")]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"(gain" in done.stdout and done.stdout.isascii()
