"""Runs that are killed, stopped, damaged or poisoned in the middle."""

from __future__ import annotations

import shutil
import signal

import pytest

from dsrl_torchrl.cli.main import main

from .pipeline_run import ENDLESS, TINY, ends, fails, loaded, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_an_empty_folder")]


NAN_ENV = """
import torch
from dsrl_torchrl.envs.toy import PointReachEnv

class NaNEnv(PointReachEnv):
    calls = 0

    def _advance(self, action):
        observation, *rest = super()._advance(action)
        self.calls += 1
        return observation * (float("nan") if self.calls > 60 else 1.0), *rest
"""


def test_nan_in_a_worker_process_is_one_line(tmp_path, finished, monkeypatch, capsys):
    (tmp_path / "nan_env.py").write_text(NAN_ENV)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = [*TINY, *loaded(finished / "a" / "base"), "task.env._target_=nan_env.NaNEnv"]
    error = fails(capsys, "stage2", *arguments, "collector.num_workers=2")
    assert "next.observation is NaN or infinite at env step" in error


LONGER = [*TINY, "stage2.total_env_steps=1500"]


def test_kill_nine_and_resume_equals_the_uninterrupted_run(tmp_path, finished, start, capsys):
    """SIGKILL in the middle of stage 2, then resume=true: the same actor, the same log, no row twice."""
    whole = [*LONGER, *loaded(finished / "a" / "base")]
    main(["stage2", *whole, "name=whole"])
    process = start("stage2", *whole, "name=killed")
    wait_for(tmp_path / "runs" / "killed" / "stage2" / "checkpoints" / "checkpoint*4??", process)
    process.signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "runs" / "killed" / "stage2" / "actor.safetensors").exists()
    assert "resume=true" in fails(capsys, "stage2", *whole, "name=killed")
    main(["stage2", *whole, "name=killed", "resume=true"])
    for name in ("stage2/actor.safetensors", "metrics.csv"):
        assert (tmp_path / "runs/killed" / name).read_bytes() == (tmp_path / "runs/whole" / name).read_bytes(), name


def test_kill_nine_in_stage_1(tmp_path, finished, start, capsys):
    """The rollouts that are there are kept, and the offline updates go on from the last checkpoint."""
    whole = [*TINY, *loaded(finished / "a" / "base"), "stage1.updates=300"]
    main(["stage1", *whole, "name=whole"])
    process = start("stage1", *whole, "name=killed")
    wait_for(tmp_path / "runs" / "killed" / "stage1" / "checkpoints" / "checkpoint*", process)
    process.signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "runs" / "killed" / "stage1" / "actor.safetensors").exists()
    assert "resume=true" in fails(capsys, "stage1", *whole, "name=killed")
    main(["stage1", *whole, "name=killed", "resume=true"])
    for name in ("actor.safetensors", "q_noise.safetensors", "rollouts.safetensors", "metrics.csv"):
        killed, uninterrupted = (tmp_path / "runs" / run / "stage1" / name for run in ("killed", "whole"))
        assert killed.read_bytes() == uninterrupted.read_bytes(), name


@pytest.fixture
def unfinished(tmp_path_factory, finished, start):
    """The folder of a run that Ctrl-C stopped after its first checkpoint."""
    folder = tmp_path_factory.mktemp("unfinished")
    arguments = [*ENDLESS, *loaded(finished / "a" / "base"), f"output={folder}", "name=stopped"]
    process = start("stage2", *arguments)
    wait_for(folder / "stopped" / "stage2" / "checkpoints" / "checkpoint*", process)
    process.signal(signal.SIGINT)
    assert "resume=true" in ends(process, 130)
    return folder / "stopped"


def test_a_damaged_checkpoint_is_one_line(tmp_path, finished, unfinished, capsys):
    arguments = ["stage2", *ENDLESS, *loaded(finished / "a" / "base")]
    for name, pattern in (("description", "*.json"), ("weights", "*.safetensors")):
        shutil.copytree(unfinished, tmp_path / "runs" / name)
        for path in (tmp_path / "runs" / name / "stage2" / "checkpoints").rglob(pattern):
            path.write_bytes(b"{")
        fails(capsys, *arguments, f"name={name}", "resume=true")
