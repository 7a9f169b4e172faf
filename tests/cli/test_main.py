"""The command line as a user meets it: the whole pipeline on the toy task, and every mistake in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from dsrl_torchrl.cli.main import main
from dsrl_torchrl.policies import FlowPolicy, save_policy

from .pipeline_run import SMOKE, TINY, fails, loaded


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_run_leaves_what_the_readme_promises(finished):
    run = finished / "a"
    summary = json.loads((run / "summary.json").read_text())
    policies = ["base_prior", "base_zero", "stage1", "stage1_deterministic"]
    policies += ["stage2_stochastic", "stage2_deterministic"]
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
    for path in ("actor", "q_noise", "q_action", "q_action_target", "rollouts"):
        assert (run / f"stage1/{path}.safetensors").exists(), path
    for path in ("stage1/metrics.csv", "stage1/stage1.png"):
        assert (run / path).exists(), path


def test_a_second_run_skips_everything(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    main(["run", *TINY, f"output={finished}", "name=a"])
    assert "exists" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_steps_one_by_one_and_own_base_policy(finished, capsys):
    base = loaded(finished / "a" / "base")
    main(["base", *TINY, "name=b", *base])
    assert "fits toy" in capsys.readouterr().out
    main(["stage2", *TINY, "name=b", *base])
    main(["eval", *TINY, "name=b", *base])
    out = capsys.readouterr().out
    assert "stage2_stochastic" in out
    assert not os.path.exists("runs/b/demos")


def test_diffusion_with_a_history_of_observations(capsys):
    small = "base_policy.policy.sampler_steps=4"
    main(["run", *TINY, "base_policy=diffusion", "task.obs_horizon=2", small, "logger=tensorboard", "name=d"])
    assert "stage2_deterministic" in capsys.readouterr().out
    assert list(Path("runs/d").rglob("events.out.tfevents*"))


def test_plain_sac_is_one_override_away(capsys):
    """No stage 1, no offline data; ``from_stage1`` gives it stage 1's actor and critics."""
    main(["run", *TINY, "algorithm=dsrl_sac", "name=sac"])
    assert not os.path.exists("runs/sac/stage1")
    out = capsys.readouterr().out
    assert "stage2_stochastic" in out
    assert "stage1" not in out
    main(["run", *TINY, "algorithm=dsrl_sac", "stage2.from_stage1=[actor,critics]", "name=warm"])
    assert "stage1 " in capsys.readouterr().out


@pytest.mark.parametrize("algorithm", ["dsrl_na", "td3", "best_of_n"])
def test_every_algorithm_runs_through(finished, capsys, algorithm):
    main(["run", *SMOKE, *loaded(finished / "a" / "base"), f"algorithm={algorithm}", "name=x"])
    out = capsys.readouterr().out
    assert "stage2_deterministic" in out
    assert ("stage1_deterministic" in out) == (algorithm != "td3")


def test_without_demonstrations(finished, capsys):
    main(["stage2", *TINY, *loaded(finished / "a" / "base"), "name=s", "stage1.use_demonstrations=false"])
    assert "stage 2: " in capsys.readouterr().out


def test_offline_data_without_stage_1(finished, capsys):
    """Rollouts enter every batch, although nothing of stage 1 is loaded."""
    words = [*TINY, *loaded(finished / "a" / "base"), "stage2.from_stage1=[]", "stage2.offline_fraction=0.5", "name=o"]
    main(["stage2", *words])
    out = capsys.readouterr().out
    assert "base rollouts: " in out and "stage 1: " not in out
    assert Path("runs/o/stage1/rollouts.safetensors").exists()


def test_demonstrations_get_their_noise_by_inversion(finished, capsys):
    """TD on the noise can then use them; the cache is found again by another run of the same base policy."""
    switches = ["stage1.inversion=retrieval", "algorithm=dsrl_sac"]
    demos = f"task.demonstrations.path={finished / 'a' / 'demos' / 'trajectory.h5'}"
    for name in ("i", "j"):
        arguments = [*TINY, *loaded(finished / "a" / "base"), demos, *switches, f"name={name}"]
        main(["stage1", *arguments])
        assert "inversion: " in capsys.readouterr().out
    assert len(list(Path("runs/inversion_cache").iterdir())) == 1


def test_the_bound_is_chosen_from_the_base_policy(finished, capsys):
    arguments = [*TINY, *loaded(finished / "a" / "base"), "latent.action_magnitude=auto", "name=m"]
    main(["stage1", *arguments])
    first = capsys.readouterr().out
    main(["stage1", *arguments])
    assert "auto: " in first
    saved = yaml.safe_load(Path("runs/m/config.yaml").read_text())
    assert saved["latent"]["action_magnitude"] in (1.0, 1.25, 1.5, 2.0, 2.5)


def test_diagnose(finished, capsys):
    arguments = [*TINY, f"output={finished}", "name=a", "diagnosis.resets=3", "diagnosis.repeats=2"]
    main(["diagnose", *arguments])
    report = json.loads((finished / "a/diagnosis/steerability.json").read_text())
    assert report["gap_policy"] is not None  # stage 1's critics are there
    assert (finished / "a/diagnosis/steerability.png").stat().st_size > 10_000
    assert "steerability.png" in capsys.readouterr().out


OWN_POLICY = """
import torch
from dsrl_torchrl.policies import BasePolicy

class Shift(BasePolicy):
    def __init__(self, speed):
        super().__init__(action_dim=2, pred_horizon=4)
        self.register_buffer("speed", torch.tensor(float(speed)))

    def forward(self, observation, noise):
        return (self.speed * noise - observation[..., None, :]).clamp(-1, 1)

class Server(Shift):
    def content_hash(self):
        return None

class Deaf(Shift):
    def forward(self, observation, noise):
        return (-observation[..., None, :]).expand(noise.shape)

def load_shift(path, speed=1.0):
    return Shift(speed)

def load_number():
    return 3
"""


def own_policy(tmp_path, monkeypatch, target, *arguments):
    (tmp_path / "own_policy.py").write_text(OWN_POLICY)
    monkeypatch.syspath_prepend(tmp_path)
    return ["base_policy=load", f"base_policy.load._target_=own_policy.{target}", *arguments]


def test_a_policy_of_ones_own(tmp_path, monkeypatch, capsys):
    """Any callable that returns a ``BasePolicy``; its weights key the run folder."""
    own = own_policy(tmp_path, monkeypatch, "load_shift", "base_policy.load.path=x")
    main(["run", *TINY, "name=own", *own])
    assert "stage2_deterministic" in capsys.readouterr().out
    assert not os.path.exists("runs/own/base")
    main(["run", *TINY, "name=own", *own, "base_policy.load.speed=1.0"])  # another way to the same weights
    assert "(exists)" in capsys.readouterr().out
    assert "content_hash" in fails(capsys, "run", *TINY, "name=own", *own, "base_policy.load.speed=2.0")


def test_a_policy_that_cannot_be_hashed_is_keyed_by_how_it_was_loaded(tmp_path, monkeypatch, capsys):
    own = own_policy(tmp_path, monkeypatch, "Server", "base_policy.load.speed=1")
    main(["stage1", *TINY, "name=own", *own])
    assert "changed weights cannot be noticed" in capsys.readouterr().out
    assert "load.speed (1 there, 2 here)" in fails(
        capsys, "stage1", *TINY, "name=own", *own, "base_policy.load.speed=2"
    )


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("load_number", [], "own_policy.load_number should return a BasePolicy, it returned a int"),
        ("load_shift", [], "base_policy.load.path is missing"),
        ("load_shift", ["base_policy.load.paht=x"], "did you mean base_policy.load.path?"),
        ("Deaf", ["base_policy.load.speed=1"], "ignores its noise"),
    ],
)
def test_a_policy_that_cannot_be_steered(tmp_path, monkeypatch, capsys, target, arguments, message):
    assert message in fails(capsys, "stage2", *TINY, *own_policy(tmp_path, monkeypatch, target, *arguments))
    assert not os.path.exists("runs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown step 'fly'"),
        (["run", "--task", "toy"], "unknown flag"),
        (["run", "task=toy", *loaded("nowhere")], "nowhere"),
        (["base", "task=toy", "task.demonstrations.path=nowhere.h5"], "nowhere.h5"),
        (["base", "task=toy", "task.demonstrations.path=~/no=where.h5"], "no=where.h5"),
        (
            ["run", "task=toy", "base_policy=shortcut", "base_policy.policy.sampler_steps=3"],
            "sampler_steps must be 1, 2",
        ),
        (["run", "task=toy", "base_policy.policy.network.kind=cnn"], "network.kind must be one of"),
        (["run", "task=toy", "output=/dev/null"], "cannot write to /dev/null"),
        (["run", "task=toy", "stage2.replay_size=0"], "replay_size"),
    ],
)
def test_mistakes_beyond_the_schema(capsys, arguments, message):
    assert message in fails(capsys, *arguments)
    assert not os.path.exists("runs")


def test_a_logger_that_cannot_log_in_is_refused_at_once(monkeypatch, capsys):
    import wandb

    monkeypatch.setattr(type(wandb.api), "api_key", None)
    assert "wandb is not logged in" in fails(capsys, "run", *TINY, "logger=wandb")
    assert not os.path.exists("runs")


def test_a_mistake_does_not_lock_the_folder(capsys):
    assert "steps" in fails(capsys, "base", *TINY, "base_policy.training.steps=0")
    main(["base", *TINY])
    assert "base policy: cloned" in capsys.readouterr().out


def test_other_contents_under_the_same_name(finished, capsys):
    copy_demos(finished)
    words = [*TINY, "task.demonstrations.path=demos.h5"]
    main(["base", *words])
    damage("demos.h5", lambda trajectory: trajectory["actions"].__setitem__(0, 0.5))
    assert "demonstrations_sha256" in fails(capsys, "base", *words)


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
        ({"observation_dim": 3}, "expected observation [*B, 3]"),
        ({"action_dim": 3}, "actions of size 3"),
        ({"pred_horizon": 2}, "pred_horizon 2"),
        ({"observation_dim": 4, "obs_horizon": 2}, "obs_horizon 2"),
    ],
)
def test_a_base_policy_that_does_not_fit(capsys, options, message):
    save_policy(base_policy(**options), "base")
    assert message in fails(capsys, "stage2", *TINY, *loaded("base"))
    assert not os.path.exists("runs")


def test_a_base_policy_for_another_control_mode(capsys):
    save_policy(base_policy(observation_dim=42, action_dim=4, control_mode="pd_joint_pos"), "base")
    arguments = ["task=pick_cube", "task.pred_horizon=4", "task.act_horizon=4", *loaded("base")]
    assert "pd_joint_pos" in fails(capsys, "stage2", *arguments)


def test_a_damaged_base_policy(finished, capsys):
    save_policy(base_policy(), "base")
    weights = Path("base/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:200])
    assert "base" in fails(capsys, "stage2", *TINY, *loaded("base"))


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


def test_an_interruption_that_surfaces_as_another_error(monkeypatch, capsys):
    def cleaned_up_badly(arguments):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("clean-up of a torch transform")

    monkeypatch.setattr("dsrl_torchrl.cli.main._main", cleaned_up_badly)
    with pytest.raises(SystemExit) as stopped:
        main(["run"])
    assert stopped.value.code == 130
    assert "Traceback" not in capsys.readouterr().err
