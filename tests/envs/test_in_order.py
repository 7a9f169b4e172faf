"""Results in order, whoever computes them; each failure is one line, and nobody is left behind."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsrl_torchrl.collect.spawned_process import WorkerError, WorkerKilledError
from dsrl_torchrl.envs.in_order import in_order
from dsrl_torchrl.errors import UserError

from ..collect.test_spawned_process import holdings
from ..processes import children, wait_until, wait_until_gone, workers

pytestmark = pytest.mark.slow

in_any_number = pytest.mark.parametrize("processes", [1, 3])


def late_if_even(item):
    time.sleep(0.3 * (item % 2 == 0))
    return item, os.getpid()


def refuse_two(item):
    if item == 2:
        raise UserError("two is too many")
    return item


def die_at_two(item):
    if item == (2, "crash"):
        os.write(2, b"assertion `two` failed\n")
        os.abort()
    if item[0] == 2:
        os.kill(os.getpid(), getattr(signal, item[1]))
    return item


def sleep_after_two(item):
    time.sleep(600 * (item > 2))
    return item


@in_any_number
def test_results_are_in_the_order_of_endless_items(processes):
    with in_order(late_if_even, itertools.count(), processes) as results:
        items, pids = zip(*itertools.islice(results, 8), strict=True)
    assert items == tuple(range(8))
    assert len(set(pids)) == processes and (os.getpid() in pids) == (processes == 1)
    assert not multiprocessing.active_children()


@in_any_number
def test_fewer_items_than_processes(processes):
    with in_order(abs, [-1, 2], processes) as results:
        assert list(results) == [1, 2]


@in_any_number
def test_an_exception_is_raised_as_it_is_and_in_its_turn(processes):
    taken = []
    with (
        pytest.raises(UserError, match="two is too many") as raised,
        in_order(refuse_two, range(9), processes) as results,
    ):
        taken.extend(results)
    assert type(raised.value) is UserError and taken == [0, 1]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("how", "kind", "line"),
    [
        ("SIGKILL", WorkerKilledError, r"was killed by SIGKILL \(or the machine ran out of memory\)"),
        ("SIGTERM", WorkerKilledError, "was killed by SIGTERM"),
        ("crash", WorkerError, "crashed by SIGABRT: assertion `two` failed"),
    ],
)
def test_a_process_that_dies_is_one_line(how, kind, line, capfd):
    with pytest.raises(WorkerError, match=rf"worker process [01] \(pid [0-9]+\) {line}$") as raised:  # noqa: SIM117
        with in_order(die_at_two, [(item, how) for item in range(9)], 2) as results:
            list(results)
    assert type(raised.value) is kind
    assert not multiprocessing.active_children()
    assert capfd.readouterr().err == ""


def test_who_leaves_waits_for_nobody_and_nothing_is_left():
    def leave(error):
        with pytest.raises(error), in_order(sleep_after_two, itertools.count(), 2) as results:
            assert next(results) == 0
            raise error

    leave(KeyboardInterrupt)
    before = holdings()
    leave(KeyboardInterrupt)
    leave(ZeroDivisionError)
    assert holdings() == before


SLEEP = """
from tests.envs.test_in_order import in_order, sleep_after_two

if __name__ == "__main__":
    with in_order(sleep_after_two, range(3, 9), 2) as results:
        list(results)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_processes_end_with_one_that_is_killed(number, tmp_path):
    (tmp_path / "sleep.py").write_text(SLEEP)
    root = Path(__file__).parents[2]
    owner = subprocess.Popen(
        [sys.executable, tmp_path / "sleep.py"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    wait_until(lambda: len(workers(owner.pid)) == 2, while_running=owner)
    started = children(owner.pid)
    owner.send_signal(number)
    assert owner.communicate(timeout=60)[1] == ""
    wait_until_gone(started)
