"""A whole run on a device, its simulator on the CPU; it goes on on the CPU, and on the device again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsrl_torchrl.cli.main import main

from .pipeline_run import SMOKE

ROOT = Path(__file__).resolve().parents[2]


def options(folder, device, total):
    few = ["base_policy.training.steps=5", "stage1.rollout_env_steps=150", "stage1.updates=4", "stage2.utd=0.2"]
    few += ["stage1.check_episodes=1", "collector.threads=1"]
    return [*SMOKE, *few, f"device={device}", f"output={folder}", "name=run", f"stage2.total_env_steps={total}"]


def check_a_run_on(device, run, folder):
    """Demonstrations to table on the device, more of stage 2 on the CPU, and on the device again."""
    for there, total in ((run, 400), (main, 500), (run, 600)):
        there(["run", *options(folder, "cpu" if there is main else device, total), "resume=true"])
        summary = json.loads((folder / "run" / "summary.json").read_text())
        assert total <= summary["env_steps"] < total + 100
        assert summary["evaluations"]["stage2_deterministic"]["success_once"]["n"] == 4


@pytest.mark.slow
def test_a_run_on_a_simulated_device(tmp_path):
    """In processes of its own: registering a device is for good."""

    def run(arguments):
        command = [sys.executable, "-m", "tests.cli.on_a_device", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]

    check_a_run_on("sim", run, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_cuda(tmp_path):
    check_a_run_on("cuda", main, tmp_path)
