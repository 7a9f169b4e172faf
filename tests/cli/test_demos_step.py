"""Demonstrations are compared with the task's env before anything is trained on them."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.cli.config import BasePolicyOptions, TaskOptions
from dsrl_torchrl.cli.steps.base import clone_policy
from dsrl_torchrl.cli.steps.demos import read_task_demonstrations, record_demonstrations, task_interface
from dsrl_torchrl.envs.toy import make_toy_demonstrations
from dsrl_torchrl.errors import UserError

TOY = "dsrl_torchrl.envs.toy.PointReachEnv"


def make_task(entries=None, **env) -> TaskOptions:
    demonstrations = {} if entries is None else {"entries": entries}
    return TaskOptions(
        name="toy", env={"_target_": TOY, **env}, demonstrations=demonstrations, pred_horizon=4, act_horizon=4
    )


@pytest.fixture
def path(tmp_path):
    return make_toy_demonstrations(tmp_path / "d.h5", 2, progress=False)


def test_the_interface_is_the_envs():
    interface = task_interface(make_task(goal=None, num_envs=3, observation_key="state"))
    assert interface.shapes["state"] == (4,)
    assert torch.equal(interface.low, -torch.ones(2)) and torch.equal(interface.high, torch.ones(2))


def test_demonstrations_that_fit_are_read(path):
    task = make_task()
    assert len(read_task_demonstrations(task, path, task_interface(task))) == 2


def test_another_observation_size_is_refused(path):
    task = make_task(goal=None)
    with pytest.raises(UserError, match=r"has observation of shape \[2\], the task has \[4\]") as error:
        read_task_demonstrations(task, path, task_interface(task))
    assert "\n" not in str(error.value)


def test_what_a_killed_recording_left_is_swept(tmp_path):
    (tmp_path / ".recording-xyz").mkdir()
    (tmp_path / ".recording-xyz" / "trajectory.h5").write_bytes(b"half")
    generator = {"_target_": "dsrl_torchrl.envs.toy.make_toy_demonstrations"}
    task = TaskOptions(name="toy", env={"_target_": TOY}, demonstrations={"generator": generator, "count": 1})
    record_demonstrations(task, tmp_path / "trajectory.h5", seed=0, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trajectory.h5", "trajectory.json"]


def test_a_policy_of_an_entry_that_the_demonstrations_lack_is_refused(path):
    task = make_task(entries={"state": "obs"}, observation_key="state")
    episodes = read_task_demonstrations(task, path, task_interface(task))
    options = BasePolicyOptions(policy={"_target_": "dsrl_torchrl.policies.FlowPolicy"})
    with pytest.raises(UserError, match=r"reads observation, the demonstrations have state: set task\.dem"):
        clone_policy(options, task, episodes, seed=0, device="cpu", progress=False)


def test_cloning_logs_its_loss(path):
    task, seen = make_task(), []
    options = BasePolicyOptions(
        policy={"_target_": "dsrl_torchrl.policies.FlowPolicy", "network": {"kind": "mlp", "width": 8, "depth": 1}},
        training={"steps": 101, "batch_size": 4},
    )
    episodes = read_task_demonstrations(task, path)
    clone_policy(options, task, episodes, seed=0, device="cpu", progress=False, log=lambda *row: seen.append(row))
    assert [step for step, _ in seen] == [100, 101]
    assert set(seen[0][1]) == {"base/loss_flow_bc", "base/lr"}
