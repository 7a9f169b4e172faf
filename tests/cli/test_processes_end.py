"""However a run with worker processes ends: one line, the right exit code, and nobody is left."""

from __future__ import annotations

import os
import signal

import pytest

from ..processes import wait_until, workers
from .pipeline_run import ENDLESS, ends, fails, loaded, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_an_empty_folder")]

TWO_WORKERS = [*ENDLESS, "collector.num_workers=2", "name=a"]
#: By what a run is doing: the step, and what makes that last.
BUSY = {
    "rollouts": ("stage1", ["stage1.rollout_env_steps=1000000"]),
    "stage 2": ("stage2", ["stage2.from_stage1=[]", "stage2.offline_fraction=0"]),
    "evaluation": ("eval", ["evaluation.episodes=100000"]),
}


@pytest.fixture
def busy(finished, start):
    """A function that starts a run with two workers, which have just been started."""

    def start_run(doing):
        step, options = BUSY[doing]
        command = start(step, *TWO_WORKERS, *options, *loaded(finished / "a" / "base"))
        wait_until(lambda: len(workers(command.pid)) == 2 or not command.running)
        assert command.running, command.wait()
        return command

    return start_run


@pytest.fixture
def steering(tmp_path, busy):
    """A run in the middle of stage 2."""
    command = busy("stage 2")
    wait_for(tmp_path / "runs" / "a" / "stage2" / "checkpoints" / "checkpoint*", command)
    return command


def kill_a_worker(command):
    victim = workers(command.pid)[0]
    os.kill(victim, signal.SIGKILL)
    line = ends(command, 1)
    assert f"(pid {victim}) was killed by SIGKILL" in line
    assert "resume=true" in line


@pytest.mark.parametrize("doing", BUSY)
def test_a_worker_that_is_killed_early_ends_the_run_in_one_line(busy, doing):
    kill_a_worker(busy(doing))


def test_a_worker_that_is_killed_in_the_middle_ends_the_run_in_one_line(steering):
    kill_a_worker(steering)


def test_sigterm_to_the_whole_group(steering):
    """As a scheduler sends it to all processes."""
    steering.signal(signal.SIGTERM)
    assert "resume=true" in ends(steering, 143)


def test_ctrl_c_again_and_again(steering):
    """A terminal's Ctrl-C reaches all processes; the first one decides, the others do no harm."""
    while steering.running:
        steering.signal(signal.SIGINT)
    line = ends(steering, 130)
    assert "interrupted" in line and "resume=true" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_while_the_workers_still_import(busy, number):
    command = busy("stage 2")
    command.signal(number, group=number == signal.SIGINT)
    end = command.wait()
    assert end.code == (130 if number == signal.SIGINT else -number), end.stderr
    assert "Traceback" not in end.stderr and (number == signal.SIGINT or end.stderr == "")


def test_a_second_run_in_the_same_folder_is_refused_and_sigterm_to_the_main_process_alone_ends_all(
    finished, steering, capsys
):
    step, options = BUSY["stage 2"]
    again = [step, *TWO_WORKERS, *options, *loaded(finished / "a" / "base"), "resume=true"]
    assert f"in use by process {steering.pid}" in fails(capsys, *again)
    assert steering.running
    steering.signal(signal.SIGTERM, group=False)
    assert "SIGTERM" in ends(steering, 143)
