"""The real thing with tiny numbers: ManiSkill demonstrations to the table, and what worker processes add."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest

from dsrl_torchrl.cli.main import main
from dsrl_torchrl.policies import FlowPolicy, save_policy
from dsrl_torchrl.training.metrics_log import read_metrics

from ..faults.commands import Process
from ..processes import wait_until
from .pipeline_run import fails, loaded

pytestmark = [pytest.mark.simulator, pytest.mark.usefixtures("in_an_empty_folder")]


@pytest.mark.slow
def test_demos_to_table(capsys):
    small = ["task.demonstrations.count=2", "collector.num_workers=1", "collector.threads=1", "progress=false"]
    main(["run", "task=push_cube", "experiment=smoke", *small, "name=a"])
    summary = json.loads(Path("runs/a/summary.json").read_text())
    assert summary["evaluations"]["stage2_stochastic"]["success_once"]["n"] == 4
    out = capsys.readouterr().out
    assert "base_prior" in out
    assert "no videos" in out or list(Path("runs/a/videos").glob("*.mp4"))


@pytest.mark.slow
def test_a_mistake_that_only_the_simulator_knows_is_one_line(capsys):
    save_policy(FlowPolicy(42, 4, 8).freeze(), "base")
    wrong = "task.env.env_id=PickCub-v1"
    words = ["task=pick_cube", "experiment=smoke", "collector.num_workers=2", "progress=false", *loaded("base"), wrong]
    assert "unknown ManiSkill task 'PickCub-v1'" in fails(capsys, "stage2", *words)
    assert not Path("runs").exists()


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
    "stage2.offline_fraction=0", "collector.num_workers=2", "task.env.num_envs=2", "stage2.total_env_steps=1600",
    "stage2.checkpoint_env_steps=360",  # 12 chunks of each env: the cube is held from the ninth or so to the end
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)  # processes that import the simulator
def test_killed_at_a_random_moment_and_resumed_equals_the_uninterrupted_run(tmp_path, monkeypatch):
    """A cube that is held when a segment ends is a contact that the simulator would keep for the next one."""
    (tmp_path / "grasper.py").write_text(GRASPER)
    monkeypatch.syspath_prepend(tmp_path)
    whole, killed = (tmp_path / "runs" / name for name in ("whole", "killed"))
    main([*STEERING, "name=whole"])

    seed = time.time_ns()
    draw = random.Random(seed)
    process = Process([*STEERING, "name=killed"], tmp_path / "streams")
    count = draw.randint(300, 1100)
    wait_until(lambda: any(step >= count for step in checkpoint_steps(killed)) or not process.running)
    time.sleep(draw.uniform(0.0, 0.5))
    process.signal(signal.SIGKILL, group=False)
    end = process.wait()  # until its workers are gone, too
    assert (end.code, end.stderr) == (-signal.SIGKILL, "")
    assert not (killed / "stage2" / "actor.safetensors").exists()

    main([*STEERING, "name=killed", "resume=true"])
    rows = read_metrics(whole / "metrics.csv")
    assert len(rows) >= 10 and read_metrics(killed / "metrics.csv") == rows, f"seed {seed}"
    for path in whole.glob("stage2/*.safetensors"):
        assert (killed / "stage2" / path.name).read_bytes() == path.read_bytes(), f"{path.name}, seed {seed}"


def checkpoint_steps(folder):
    """The env steps of the checkpoints of stage 2."""
    return [int(path.name.removeprefix("checkpoint-")) for path in folder.glob("stage2/checkpoints/checkpoint-*")]
