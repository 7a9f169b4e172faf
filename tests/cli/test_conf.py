"""Every task in conf/task names things that exist."""

from __future__ import annotations

import json

import pytest

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.help import choices
from dsrl_torchrl.cli.steps.demos import read_task_demonstrations, record_demonstrations
from dsrl_torchrl.cli.targets import make

TASKS = choices("task")


@pytest.mark.parametrize("name", TASKS)
def test_task(name):
    task = compose([f"task={name}"]).task
    assert task.name == name
    assert task.demonstrations.path is None
    # What the generator has in common with the env is said once.
    assert task.generator_spec["max_episode_steps"] == task.env["max_episode_steps"]
    assert "env_id" not in task.demonstrations.generator


@pytest.mark.parametrize("name", [name for name in TASKS if name != "toy"])
def test_maniskill_task_steps(name):
    pytest.importorskip("mani_skill")
    task = compose([f"task={name}"]).task
    assert task.generator_spec["env_id"] == task.env["env_id"]
    env = make(task.env, seed=0)
    rollout = env.rollout(3)
    assert rollout.shape == (1, 3) and rollout["next", "reward"].eq(-1).all()
    env.close()


def test_the_toy_task_records_and_steps(tmp_path):
    task = compose(["task=toy", "task.demonstrations.count=3"]).task
    path = tmp_path / "demos.h5"
    record_demonstrations(task, path, seed=1, progress=False)
    env = make(task.env, terminate_on_success=False)
    assert env.rollout(50).shape == (1, task.env["max_episode_steps"])
    assert len(read_task_demonstrations(task, path)) == 3
    assert json.loads(path.with_suffix(".json").read_text())["env_info"]["env_id"] == "PointReach"
