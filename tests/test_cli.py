"""The command line as a user meets it: the whole pipeline on the toy task, and every mistake in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from dsrl_torchrl.cli import main
from dsrl_torchrl.policies import FlowPolicy, save_policy

TINY = ["task=toy", "experiment=smoke", "collector.num_workers=1", "progress=false"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, made once."""
    folder = tmp_path_factory.mktemp("finished")
    main(["run", *TINY, f"output={folder}", "name=a"])
    return folder


def fails(capsys, *arguments):
    """The one line that a mistake prints; exit code 1."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("dsrl: error: ")
    assert "\n" not in error
    return error


def test_run_leaves_what_the_readme_promises(finished):
    run = finished / "a"
    summary = json.loads((run / "summary.json").read_text())
    policies = ["base_prior", "base_zero", "stage2_stochastic", "stage2_deterministic"]
    assert list(summary["evaluations"]) == policies
    for policy in policies:
        for measure in ("success_once", "success_at_end"):
            rate = summary["evaluations"][policy][measure]
            assert rate.keys() == {"value", "low", "high", "n"}
            assert rate["n"] == 4
    assert summary["env_steps"] >= 400
    assert summary["updates"] > 0
    assert summary["wall_seconds"] > 0
    assert len(summary["config_hash"]) == 12
    assert summary["versions"]["torch"] == torch.__version__
    for path in ("config.yaml", "metrics.csv", "learning_curve.png", "base/model.safetensors", "demos/trajectory.h5"):
        assert (run / path).exists(), path


def test_a_second_run_skips_everything(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    main(["run", *TINY, f"output={finished}", "name=a"])
    assert "exists" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_steps_one_by_one_and_own_base_policy(finished, capsys):
    base = finished / "a" / "base"
    main(["stage2", *TINY, "name=b", f"base_policy.checkpoint={base}"])
    main(["eval", *TINY, "name=b", f"base_policy.checkpoint={base}"])
    out = capsys.readouterr().out
    assert "stage2_stochastic" in out
    assert not os.path.exists("runs/b/demos")


def test_diffusion_with_a_history_of_observations(capsys):
    small = "base_policy.policy.sampler_steps=4"
    main(["run", *TINY, "base_policy=diffusion", "task.obs_horizon=2", small, "logger=tensorboard", "name=d"])
    assert "stage2_deterministic" in capsys.readouterr().out
    assert list(Path("runs/d").rglob("events.out.tfevents*"))


def test_help(capsys):
    main(["--help"])
    assert "usage: dsrl" in capsys.readouterr().out
    main(["stage2", "--help"])
    assert "utd:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown step 'fly'"),
        (["run", "task=pick_cub"], "pick_cub"),
        (["run", "algorithm.utdd=3"], "utdd"),
        (["run", "--task", "toy"], "unknown flag"),
        (["run", "task=toy", "task.act_horizon=9"], "act_horizon must lie between"),
        (["run", "task=toy", "latent.action_magnitude=0"], "action_magnitude must be positive"),
        (["run", "task=toy", "latent.noise_layout=half"], "noise_layout must be one of"),
        (["run", "task=toy", "algorithm.utd=0.5"], "utd"),
        (["run", "task=toy", "algorithm.batch_size=-1"], "batch_size"),
        (["run", "task=toy", "logger=wandb", "logger.mode=maybe"], "logger.mode"),
        (["run", "task=toy", "collector.num_workers=0"], "num_workers"),
        (["run", "task=toy", "base_policy.checkpoint=nowhere"], "nowhere"),
        (["base", "task=toy", "task.demonstrations.path=nowhere.h5"], "nowhere.h5"),
        (["run", "task=toy", "algorithm.utd=many"], "utd must be a number"),
    ],
)
def test_mistakes_in_options(capsys, arguments, message):
    assert message in fails(capsys, *arguments)
    assert not os.path.exists("runs")


def test_the_folder_of_another_configuration(finished, capsys):
    marker = finished / "a" / "stage2" / "artifact.json"
    before = marker.read_text()
    error = fails(capsys, "run", *TINY, f"output={finished}", "name=a", "algorithm.gamma=0.5")
    assert "algorithm.gamma (0.98 there, 0.5 here)" in error
    assert marker.read_text() == before


def base_policy(**options):
    sizes = {"observation_dim": 2, "action_dim": 2, "pred_horizon": 4}
    return FlowPolicy(**(sizes | options)).freeze()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observation_dim": 3}, "observations of size 3"),
        ({"action_dim": 3}, "actions of size 3"),
        ({"pred_horizon": 2}, "pred_horizon 2"),
        ({"observation_dim": 4, "obs_horizon": 2}, "obs_horizon 2"),
    ],
)
def test_a_base_policy_that_does_not_fit(capsys, options, message):
    save_policy(base_policy(**options), "base")
    assert message in fails(capsys, "stage2", *TINY, "base_policy.checkpoint=base")
    assert not os.path.exists("runs")


def test_a_base_policy_for_another_control_mode(capsys):
    save_policy(base_policy(observation_dim=42, action_dim=4, control_mode="pd_joint_pos"), "base")
    arguments = ["task=pick_cube", "task.pred_horizon=4", "task.act_horizon=4", "base_policy.checkpoint=base"]
    assert "pd_joint_pos" in fails(capsys, "stage2", *arguments)


def test_a_damaged_base_policy(finished, capsys):
    save_policy(base_policy(), "base")
    weights = Path("base/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:200])
    assert "base" in fails(capsys, "stage2", *TINY, "base_policy.checkpoint=base")


def damage(path, change):
    with h5py.File(path, "r+") as file:
        for trajectory in file.values():
            change(trajectory)


def set_nan(trajectory):
    actions = trajectory["actions"][:]
    actions[1] = np.nan
    trajectory["actions"][...] = actions


def copy_demos(finished):
    for suffix in ("h5", "json"):
        content = (finished / "a" / "demos" / f"trajectory.{suffix}").read_bytes()
        Path(f"demos.{suffix}").write_bytes(content)


def test_nan_in_demonstrations(finished, capsys):
    copy_demos(finished)
    damage("demos.h5", set_nan)
    error = fails(capsys, "base", *TINY, "task.demonstrations.path=demos.h5")
    assert "NaN" in error and "step 1" in error
    assert not os.path.exists("runs/toy-seed0/base/model.safetensors")


def test_demonstrations_without_success(finished, capsys):
    copy_demos(finished)
    damage("demos.h5", lambda trajectory: trajectory["success"].__setitem__(..., False))
    description = json.loads(Path("demos.json").read_text())
    for episode in description["episodes"]:
        episode["success"] = False
    Path("demos.json").write_text(json.dumps(description))
    assert "success" in fails(capsys, "base", *TINY, "task.demonstrations.path=demos.h5")


def start(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dsrl_torchrl", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not list(path.parent.glob(path.name)):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)


def rows_of(path):
    return path.read_text().splitlines()


NAN_ENV = """
import torch
from envs.toy import PointReachEnv

class NaNEnv(PointReachEnv):
    calls = 0

    def _advance(self, action):
        observation, *rest = super()._advance(action)
        self.calls += 1
        return observation * (float("nan") if self.calls > 60 else 1.0), *rest
"""


def test_nan_in_a_worker_process_is_one_line(tmp_path, finished, monkeypatch):
    (tmp_path / "nan_env.py").write_text(NAN_ENV)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = [*TINY, f"base_policy.checkpoint={finished / 'a' / 'base'}", "task.env._target_=nan_env.NaNEnv"]
    process = start("stage2", *arguments, "collector.num_workers=2")
    _, error = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "next.observation is NaN or infinite at env step" in error
    assert "Traceback" not in error


LONGER = [*TINY, "algorithm.total_env_steps=1500"]


def test_kill_nine_and_resume_equals_the_uninterrupted_run(tmp_path, finished, capsys):
    """SIGKILL in the middle of stage 2, then resume=true: the same actor, the same log, no row twice."""
    whole = [*LONGER, f"base_policy.checkpoint={finished / 'a' / 'base'}"]
    main(["stage2", *whole, "name=whole"])
    process = start("stage2", *whole, "name=killed")
    wait_for(tmp_path / "runs" / "killed" / "stage2" / "checkpoints" / "checkpoint*4??", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "runs" / "killed" / "stage2" / "actor.safetensors").exists()
    assert "resume=true" in fails(capsys, "stage2", *whole, "name=killed")
    main(["stage2", *whole, "name=killed", "resume=true"])
    for name in ("stage2/actor.safetensors", "metrics.csv"):
        assert (tmp_path / "runs/killed" / name).read_bytes() == (tmp_path / "runs/whole" / name).read_bytes(), name


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory, finished):
    """The folder of a run that Ctrl-C stopped after its first checkpoint."""
    folder = tmp_path_factory.mktemp("unfinished")
    arguments = [*LONGER, f"base_policy.checkpoint={finished / 'a' / 'base'}", f"output={folder}", "name=stopped"]
    process = start("stage2", *arguments)
    wait_for(folder / "stopped" / "stage2" / "checkpoints" / "checkpoint*", process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    (folder / "stopped" / "stderr.txt").write_text(error)
    assert process.returncode == 130, error
    return folder / "stopped"


def test_ctrl_c_is_one_line(unfinished):
    error = (unfinished / "stderr.txt").read_text()
    assert "resume=true" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("pattern", ["*.json", "*.memmap"])
def test_a_damaged_checkpoint_is_one_line(tmp_path, finished, unfinished, capsys, pattern):
    arguments = ["stage2", *LONGER, f"base_policy.checkpoint={finished / 'a' / 'base'}", "name=damaged"]
    shutil.copytree(unfinished, tmp_path / "runs" / "damaged")
    for path in (tmp_path / "runs/damaged/stage2/checkpoints").rglob(pattern):
        path.write_bytes(b"{")
    with pytest.raises(SystemExit):
        main([*arguments, "resume=true"])
    error = capsys.readouterr().err.strip()
    assert error.startswith("dsrl: error: ") and "\n" not in error


def test_an_interruption_that_surfaces_as_another_error(monkeypatch, capsys):
    def cleaned_up_badly(arguments):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("clean-up of a torch transform")

    monkeypatch.setattr("dsrl_torchrl.cli._main", cleaned_up_badly)
    with pytest.raises(SystemExit) as stopped:
        main(["run"])
    assert stopped.value.code == 130
    assert "Traceback" not in capsys.readouterr().err
