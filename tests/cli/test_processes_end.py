"""However a run with worker processes ends: one line, the right exit code, and nobody is left."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from ..processes import wait_until, wait_until_empty, workers
from .pipeline_run import ENDLESS, ends, loaded, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_an_empty_folder")]

TWO_WORKERS = [*ENDLESS, "collector.num_workers=2", "name=a"]
#: By what a run is doing: the step, and what makes that last.
BUSY = {
    "rollouts": ("stage1", ["stage1.rollout_env_steps=1000000"]),
    "stage 2": ("stage2", []),
    "evaluation": ("eval", ["evaluation.episodes=100000"]),
}


@pytest.fixture
def busy(finished):
    """A function that starts a run with two workers, in a process group of its own."""
    started = []

    def start_run(doing):
        step, options = BUSY[doing]
        arguments = [step, *TWO_WORKERS, *options, *loaded(finished / "a" / "base")]
        started.append(start(*arguments, start_new_session=True))
        wait_until(lambda: len(workers(started[-1].pid)) == 2, started[-1])
        return started[-1]

    yield start_run
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def steering(tmp_path, busy):
    """A run in the middle of stage 2."""
    process = busy("stage 2")
    wait_for(tmp_path / "runs" / "a" / "stage2" / "checkpoints" / "checkpoint*", process)
    return process


def kill_a_worker(process):
    victim = workers(process.pid)[0]
    os.kill(victim, signal.SIGKILL)
    line = ends(process, 1)
    assert f"(pid {victim}) was killed by SIGKILL" in line
    assert "resume=true" in line
    wait_until_empty(process.pid)


@pytest.mark.parametrize("doing", BUSY)
def test_a_worker_that_is_killed_early_ends_the_run_in_one_line(busy, doing):
    kill_a_worker(busy(doing))


def test_a_worker_that_is_killed_in_the_middle_ends_the_run_in_one_line(steering):
    kill_a_worker(steering)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group(steering, number, code):
    """A terminal's Ctrl-C, or a scheduler's SIGTERM, reaches all processes."""
    os.killpg(steering.pid, number)
    assert "resume=true" in ends(steering, code)
    wait_until_empty(steering.pid)


def test_sigterm_to_the_main_process(steering):
    steering.terminate()
    assert "SIGTERM" in ends(steering, 143)
    wait_until_empty(steering.pid)


def test_ctrl_c_again_and_again(steering):
    while steering.poll() is None:
        os.killpg(steering.pid, signal.SIGINT)
    assert "interrupted" in ends(steering, 130)
    wait_until_empty(steering.pid)


def test_kill_nine_leaves_nobody_and_no_word(steering):
    steering.kill()
    _, error = steering.communicate()
    assert error == ""
    wait_until_empty(steering.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_while_the_workers_still_import(busy, number):
    process = busy("stage 2")  # they have just been started
    os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
    _, error = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number), error
    assert "Traceback" not in error
    wait_until_empty(process.pid)


def test_a_second_run_in_the_same_folder(tmp_path, finished, steering):
    """The first one goes on."""
    arguments = ["stage2", *TWO_WORKERS, *loaded(finished / "a" / "base"), "resume=true"]
    assert f"in use by process {steering.pid}" in ends(start(*arguments), 1)
    steering.send_signal(signal.SIGINT)
    ends(steering, 130)
