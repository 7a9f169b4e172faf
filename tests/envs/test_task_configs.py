"""Every task in conf/task names things that exist."""

import json
from pathlib import Path

import pytest

import dsrl_torchrl.conf
from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.targets import make
from dsrl_torchrl.data.readers.maniskill import read_maniskill
from dsrl_torchrl.envs.headless import rendering_available

FILES = sorted(Path(dsrl_torchrl.conf.__path__[0]).glob("task/*.yaml"))
# `own` names nothing: the user does.
TASKS = [file.stem for file in FILES if not file.stem.startswith("_") and file.stem != "own"]


def load(name):
    return compose([f"task={name}"]).task


@pytest.mark.parametrize("name", TASKS)
def test_task(name):
    task = load(name)
    assert task.name == name
    assert task.demonstrations.path is None and task.demonstrations.action_noise > 0
    assert task.generator_spec["max_episode_steps"] == task.env["max_episode_steps"]


@pytest.mark.simulator
@pytest.mark.parametrize("name", [name for name in TASKS if name != "toy"])
def test_maniskill_task_steps(name):
    pytest.importorskip("mani_skill")
    task = load(name)
    if "image_size" in task.env and not rendering_available()[0]:
        pytest.skip(rendering_available()[1])
    env = make(task.env, seed=0)
    rollout = env.rollout(3)
    assert rollout.shape == (8, 3) and rollout["next", "reward"].eq(-1).all()
    env.close()


def test_the_toy_task_records_and_steps(tmp_path):
    task = load("toy")
    noise = task.demonstrations.action_noise
    path = tmp_path / "demos.h5"
    make(task.generator_spec, path=path, count=3, action_noise=noise, seed=0, progress=False)
    env = make(task.env, terminate_on_success=False)
    assert env.rollout(50).shape == (1, task.env["max_episode_steps"])
    episodes = read_maniskill(path, shapes={"observation": [2]}, action_dim=2)
    assert len(episodes) == 3
    assert json.loads(path.with_suffix(".json").read_text())["env_info"]["env_id"] == "PointReach"
