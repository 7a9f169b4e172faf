"""The real thing with tiny numbers: ManiSkill demonstrations to the table, through the command, in worker processes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import pytest

from dsrl_torchrl.policies import FlowPolicy, save_policy
from dsrl_torchrl.training.metrics_log import read_metrics

from ..processes import wait_until, wait_until_empty
from .pipeline_run import loaded, start

pytestmark = pytest.mark.simulator


def run(*arguments, cwd):
    command = [sys.executable, "-m", "dsrl_torchrl", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280)


def test_demos_to_table(tmp_path):
    done = run("run", "task=push_cube", "experiment=smoke", "task.demonstrations.count=2", "name=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs/a/summary.json").read_text())
    assert summary["evaluations"]["stage2_stochastic"]["success_once"]["n"] == 4
    assert "base_prior" in done.stdout
    assert "no videos" in done.stdout or list((tmp_path / "runs/a/videos").glob("*.mp4"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("task.env.env_id=PickCub-v1", "unknown ManiSkill task 'PickCub-v1'"),
        ("task.env.control_mode=pd_ee", "unknown control_mode for PickCube-v1: pd_ee"),
    ],
)
def test_mistakes_inside_workers_are_one_line(tmp_path, option, message):
    save_policy(FlowPolicy(42, 4, 8).freeze(), tmp_path / "base")
    arguments = ["stage2", "task=pick_cube", "experiment=smoke", *loaded("base"), option]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("dsrl: error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


GRASPER = """
import torch
from dsrl_torchrl.policies import BasePolicy

class Grasper(BasePolicy):
    def __init__(self):
        super().__init__(action_dim=4, pred_horizon=8)
        self.freeze()

    def forward(self, observation, noise):
        to_cube = observation[..., 36:39]
        near = to_cube.norm(dim=-1, keepdim=True) < 0.02
        move = torch.where(near, torch.tensor([0.0, 0.0, 0.2]), 1.25 * to_cube)
        action = torch.cat([move, torch.where(near, -1.0, 1.0)], -1)
        return (action.unsqueeze(-2) + 0.1 * noise).clamp(-1, 1)
"""
STEERING = [
    "stage2", "task=pick_cube", "experiment=smoke", "base_policy=load", "base_policy.load._target_=grasper.Grasper",
    "progress=false", "collector.threads=1", "algorithm.critic_only_updates=5", "stage2.from_stage1=[]",
    "stage2.offline_fraction=0", "stage2.total_env_steps=1000",
    "stage2.checkpoint_env_steps=90",  # 12 chunks: the cube is held from the ninth or so to the end of an episode
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)  # three processes that import the simulator, and so do their workers
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_a_random_moment_and_resumed_equals_the_uninterrupted_run(tmp_path, workers):
    """A cube that is held when a segment ends is a contact that the simulator would keep for the next one."""
    (tmp_path / "grasper.py").write_text(GRASPER)
    arguments = [*STEERING, f"collector.num_workers={workers}"]
    whole, killed = (tmp_path / "runs" / name for name in ("whole", "killed"))
    done = run(*arguments, "name=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    seed = time.time_ns()
    draw = random.Random(seed)
    process = start(*arguments, "name=killed", cwd=tmp_path, start_new_session=True)
    count = draw.randint(200, 600)
    wait_until(lambda: any(step >= count for step in checkpoint_steps(killed)), process)
    time.sleep(draw.uniform(0.0, 0.5))
    process.kill()
    process.communicate()
    wait_until_empty(process.pid)
    assert not (killed / "stage2" / "actor.safetensors").exists()

    done = run(*arguments, "name=killed", "resume=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(whole / "metrics.csv")
    assert len(rows) >= 10 and read_metrics(killed / "metrics.csv") == rows, f"seed {seed}"
    for path in whole.glob("stage2/*.safetensors"):
        assert (killed / "stage2" / path.name).read_bytes() == path.read_bytes(), f"{path.name}, seed {seed}"


def checkpoint_steps(folder):
    """The env steps of the checkpoints of stage 2."""
    return [int(path.name.removeprefix("checkpoint-")) for path in folder.glob("stage2/checkpoints/checkpoint-*")]
