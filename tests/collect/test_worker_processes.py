"""Env workers: each failure is one line with its cause, and nobody is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from dsrl_torchrl.collect.spawned_process import WorkerError, WorkerKilledError
from dsrl_torchrl.collect.worker_processes import WorkerEnvs
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import UserError

from ..processes import children, wait_until, wait_until_gone, workers
from .test_spawned_process import holdings

pytestmark = pytest.mark.slow


class FailingEnv(PointReachEnv):
    """Fails in a worker process, where and how ``failure`` says."""

    def __init__(self, failure: str) -> None:
        self.failure = failure if multiprocessing.parent_process() is not None else ""
        if self.failure == "constructor":
            os.write(2, b"a warning\n" * 100_000)  # more than a pipe holds
            raise UserError("the robot has no arm\nat all")
        super().__init__()

    def _step(self, tensordict):
        if self.failure == "step":
            print("a note on stdout")
            raise IndexError("the arm is gone") from ValueError("a deeper reason")
        return super()._step(tensordict)

    def _reset(self, tensordict=None, **kwargs):
        if self.failure == "reset":
            os.write(2, b"assertion `arm` failed\n")
            os.abort()
        return super()._reset(tensordict, **kwargs)


def rollout(env):
    with torch.no_grad():
        env.rollout(3, auto_cast_to_device=False)


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        ("constructor", "failed: the robot has no arm at all"),
        ("step", "failed: IndexError: the arm is gone"),
        ("reset", "crashed by SIGABRT: assertion `arm` failed"),
    ],
)
def test_a_failing_env_is_one_line_with_its_cause(failure, line, capfd):
    env = WorkerEnvs(1, partial(FailingEnv, failure))
    with pytest.raises(WorkerError, match=f"env worker 0 \\(pid [0-9]+\\) {line}") as raised:
        rollout(env)
    assert "\n" not in str(raised.value)
    env.close()  # as a `finally` does
    env.close()
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


def check_a_killed_worker_is_named(env, number):
    victim = env._workers[1]
    os.kill(victim.pid, number)
    line = rf"env worker 1 \(pid {victim.pid}\) was killed by {number.name}"
    with pytest.raises(WorkerKilledError, match=line) as raised:
        for _ in range(1000):
            rollout(env)
    assert ("ran out of memory" in str(raised.value)) == (number == signal.SIGKILL)
    assert "resume" not in str(raised.value)  # there need not be a command
    env.close()
    assert not multiprocessing.active_children()


def test_workers_ignore_ctrl_c_and_leave_torch_its_threads_and_are_named_when_killed(capfd):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        env = WorkerEnvs(2, PointReachEnv)
        rollout(env)
        assert torch.get_num_threads() == 3
        for worker in env._workers:
            os.kill(worker.pid, signal.SIGINT)
        rollout(env)
        check_a_killed_worker_is_named(env, signal.SIGTERM)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert capfd.readouterr().err == ""


def test_envs_outlive_the_thread_that_made_them_and_close_when_dead_and_nothing_is_left(capfd):
    def make_and_close(workers=1, first=rollout, end=lambda env: None):
        env = WorkerEnvs(workers, PointReachEnv)
        first(env)
        rollout(env)
        readers = [worker._reader for worker in env._workers]
        end(env)
        env.close()
        for reader in readers:
            reader.join()

    def in_a_thread(env):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(rollout, env).result()  # workers start at the first use

    make_and_close(first=in_a_thread, end=lambda env: env._workers[0].kill())
    before = holdings()
    make_and_close()
    make_and_close(2, end=lambda env: check_a_killed_worker_is_named(env, signal.SIGKILL))
    assert holdings() == before
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


STEP_FOR_EVER = """
from dsrl_torchrl.collect.worker_processes import WorkerEnvs
from dsrl_torchrl.envs.toy import PointReachEnv

if __name__ == "__main__":
    env = WorkerEnvs(2, PointReachEnv)
    while True:
        env.rollout(3)
"""


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    """At whatever point of their start they are, and without a word; ``kill -9`` is in the tests of the command."""
    (tmp_path / "step_for_ever.py").write_text(STEP_FOR_EVER)
    owner = subprocess.Popen([sys.executable, tmp_path / "step_for_ever.py"], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(workers(owner.pid)) == 2, while_running=owner)
    started = children(owner.pid)
    owner.terminate()
    assert owner.communicate(timeout=60)[1] == ""
    wait_until_gone(started)
