"""The real thing with tiny numbers: ManiSkill demonstrations to the table, through the command, in worker processes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dsrl_torchrl.policies import FlowPolicy, save_policy

from .pipeline_run import loaded

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
