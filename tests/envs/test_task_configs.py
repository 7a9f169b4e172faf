"""Every task in conf/task names things that exist."""

import json
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import conf
from dsrl_torchrl.data.readers.maniskill import read_demonstrations

FILES = sorted((Path(conf.__path__[0]) / "task").glob("*.yaml"))


def load(file):
    return OmegaConf.create({"task": OmegaConf.load(file)}).task


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_task(file):
    task = load(file)
    assert task.name == file.stem
    assert 1 <= task.act_horizon <= task.pred_horizon and task.obs_horizon >= 1
    assert task.demonstrations.path is None
    generator = instantiate(task.demonstrations.generator)
    assert callable(generator) and generator.keywords["max_episode_steps"] == task.env.max_episode_steps


@pytest.mark.parametrize("file", [f for f in FILES if f.stem != "toy"], ids=lambda file: file.stem)
def test_maniskill_task_steps(file):
    pytest.importorskip("mani_skill")
    task = load(file)
    env = instantiate(task.env)(seed=0)
    rollout = env.rollout(3)
    assert rollout.shape == (1, 3) and rollout["next", "reward"].eq(-1).all()
    env.close()


def test_the_toy_task_records_and_steps(tmp_path):
    task = load(Path(conf.__path__[0]) / "task" / "toy.yaml")
    path = instantiate(task.demonstrations.generator)(
        path=tmp_path / "demos.h5", count=3, action_noise=task.demonstrations.action_noise, seed=0, progress=False
    )
    env = instantiate(task.env)(terminate_on_success=False)
    assert env.rollout(50).shape == (1, task.env.max_episode_steps)
    episodes = read_demonstrations(path, observation_dim=2, action_dim=2)
    assert len(episodes) == 3
    assert json.loads(path.with_suffix(".json").read_text())["env_info"]["env_id"] == "PointReach"
