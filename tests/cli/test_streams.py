"""What the command says where nobody reads it, or a terminal knows no other letters than ASCII's."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys

import pytest

from dsrl_torchrl.cli.main import main

from .pipeline_run import SMOKE, TINY, fails, loaded

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

DSRL = [sys.executable, "-m", "dsrl_torchrl"]


A_STEP = """
import sys
import dsrl_torchrl.cli.main as command

def step(arguments, interruption):
    with open("result", "w") as file:
        file.write("content" + sys.stdin.read())
        file.flush()
        print("a line")
        print("a bar", file=sys.stderr, flush=True)

command._main = step
command.main()
"""


def run_closed(command, closed):
    """Run by a shell that closes streams."""
    command = f"{shlex.join(map(str, command))} {closed}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", ">&- 2>&- <&-"])
def test_no_file_gets_what_was_meant_for_a_closed_stream(tmp_path, closed):
    done = run_closed([sys.executable, "-c", A_STEP], closed)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result").read_text() == "content"
    assert done.stdout == ("" if ">&- " in f"{closed} ".replace("2>&-", "") else "a line\n")
    assert done.stderr == ("" if "2>" in closed else "a bar\n")
    done = run_closed([*DSRL, "stage3"], closed)
    assert done.returncode == 1
    assert not done.stdout and ("unknown step" in done.stderr) == ("2>" not in closed)


@pytest.mark.slow
def test_a_real_step_without_any_stream():
    """A progress bar is shown, and HDF5 files are written."""
    done = run_closed([*DSRL, "demos", *SMOKE, "progress=true", "name=a"], ">&- 2>&- <&-")
    assert done.returncode == 0


@pytest.mark.parametrize("words", [["x" * 100_000], ["stage3\n" * 1000]])
def test_a_long_unknown_step_is_not_repeated_in_full(capsys, words):
    assert len(fails(capsys, *words)) < 300


def test_a_closed_pipe_ends_the_command_quietly():
    """As in ``dsrl ... | head -1``, when ``head`` has ended."""
    read, write = os.pipe()
    os.close(read)
    command = [*DSRL, "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.slow
def test_an_ascii_terminal_gets_every_line(finished, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    main(["stage1", *TINY, *loaded(finished / "a" / "base")])
    assert b"(gain" in shown.getvalue() and b" ? " in shown.getvalue()
