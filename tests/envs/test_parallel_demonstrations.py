"""Which episodes are kept, whatever the number of processes: without the simulator, an attempt is a formula."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import h5py
import pytest

pytest.importorskip("gymnasium")

from dsrl_torchrl.collect.spawned_process import WorkerKilledError
from dsrl_torchrl.envs import demonstrations
from dsrl_torchrl.envs.demonstrations import make_demonstrations
from dsrl_torchrl.envs.planned_episode import Outcome
from dsrl_torchrl.errors import UserError

pytestmark = pytest.mark.slow


def formula(folder, env_id, control_mode, run_seed, action_noise, max_episode_steps, cameras, state, seed):
    """Every fifth is not planned, every third not solved; later ones are done sooner."""
    time.sleep(0.02 * (9 - seed % 10))
    if seed % 5 == 0 or seed % 3 == 0:
        return Outcome(seed % 5 != 0, None)
    part = folder / str(seed) / "trajectory.h5"
    part.parent.mkdir()
    with h5py.File(part, "w") as file:
        file.create_group("traj_0")["actions"] = [float(seed)]
    described = {"env_info": {"env_id": env_id}, "episodes": [{"episode_id": 0, "episode_seed": seed}]}
    part.with_suffix(".json").write_text(json.dumps(described))
    return Outcome(True, part)


def killed_at_seven(*arguments):
    if arguments[-1] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return formula(*arguments)


def interrupted(*arguments):
    raise KeyboardInterrupt


@pytest.fixture
def record(monkeypatch, tmp_path):
    def record(attempt, processes, count=6, name="demos.h5", **kwargs):
        monkeypatch.setattr(demonstrations, "record_episode", attempt)
        path = tmp_path / name
        return make_demonstrations(path, "Formula", "any", count, processes=processes, progress=False, **kwargs)

    return record


@pytest.mark.parametrize("processes", [1, 3])
def test_the_first_that_succeed_are_kept_in_the_order_of_their_seeds(processes, record):
    path = record(formula, processes)
    kept = [1, 2, 4, 7, 8, 11]  # of 0 to 11, of which 0, 5 and 10 are not planned
    described = json.loads(path.with_suffix(".json").read_text())
    assert [episode["episode_seed"] for episode in described["episodes"]] == kept
    assert [episode["episode_id"] for episode in described["episodes"]] == list(range(6))
    tally = {"seed": 0, "action_noise": 0.0, "attempts": 12, "planned": 9, "recorded": 6}
    assert described["dsrl_torchrl"] == tally and described["env_info"] == {"env_id": "Formula"}
    with h5py.File(path) as file:
        assert [file[f"traj_{number}/actions"][0] for number in range(6)] == kept and len(file) == 6
    assert sorted(file.name for file in path.parent.iterdir()) == ["demos.h5", "demos.json"]


@pytest.mark.parametrize("processes", [1, 2])
def test_too_few_are_told_by_their_numbers(processes, record, tmp_path):
    numbers = "only 3 of 6 demonstrations of Formula in 5 attempts: 4 were planned, 3 of those solved"
    with pytest.raises(UserError, match=numbers):
        record(formula, processes, max_attempts=5)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_publishes_nothing(record, tmp_path):
    with pytest.raises(WorkerKilledError, match=r"worker process [01] \(pid [0-9]+\) was killed by SIGKILL"):
        record(killed_at_seven, 2)
    assert not list(tmp_path.iterdir()) and not multiprocessing.active_children()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interruption_publishes_nothing(processes, record, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        record(interrupted, processes)
    assert not list(tmp_path.iterdir()) and not multiprocessing.active_children()


def test_a_process_per_core_if_it_gets_ten_episodes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setattr("dsrl_torchrl.collect.spawned_process.cores_of_group", lambda: None)
    assert [demonstrations._processes_for(count) for count in (1, 19, 20, 39, 40, 1000)] == [1, 1, 2, 3, 4, 4]
