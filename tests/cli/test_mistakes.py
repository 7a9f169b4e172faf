"""Mistakes that no schema shows: in files, in what exists already, on this machine. Each is one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from dsrl_torchrl.cli.main import main

from .pipeline_run import SMOKE, TINY, fails, loaded

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


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
        (["run", "task=toy", "output=/dev/null"], "/dev/null"),
        (["run", "task=toy", "stage2.replay_size=0"], "replay_size"),
    ],
)
def test_mistakes_beyond_the_schema(capsys, arguments, message):
    assert message in fails(capsys, *arguments)
    assert not os.path.exists("runs")


PICTURES = "task.demonstrations.entries={observation: obs/state, pixels: obs/pixels}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base_policy.policy.image_keys=[pixels]"], "base_policy.policy reads pixels, but task.env gives"),
        (["networks.in_keys=[pixels]"], "networks.in_keys reads pixels, but task.env gives"),
        (["networks.in_keys=[base_features]"], "set latent.base_features=true"),
        (["networks=dsrl_pi0", "networks.in_keys=[pixels]", "task.env.image_size=8"], "8 x 8 pixels are too small"),
    ],
)
def test_what_cannot_be_seen_is_told_before_demonstrations_are_recorded(capsys, arguments, message):
    assert message in fails(capsys, "run", *TINY, PICTURES, *arguments)
    assert not list(Path().rglob("*.h5"))


def test_a_logger_that_cannot_log_in_is_refused_at_once(monkeypatch, capsys):
    import wandb

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(type(wandb.api), "api_key", None)
    assert "wandb is not logged in" in fails(capsys, "run", *TINY, "logger=wandb")
    monkeypatch.setenv("WANDB_MODE", "of")
    assert "WANDB_MODE should be one of online, offline" in fails(capsys, "run", *TINY, "logger=wandb")
    assert not os.path.exists("runs")


def test_a_mistake_does_not_lock_the_folder(capsys):
    assert "steps" in fails(capsys, "base", *TINY, "base_policy.training.steps=0")
    main(["base", *TINY])
    assert "base policy: cloned" in capsys.readouterr().out


def test_the_folder_of_another_configuration(finished, capsys):
    marker = finished / "a" / "stage2" / "artifact.json"
    before = marker.read_text()
    error = fails(capsys, "run", *TINY, f"output={finished}", "name=a", "algorithm.gamma=0.5")
    assert "algorithm.gamma (0.98 there, 0.5 here)" in error
    assert marker.read_text() == before


def damage(path, change):
    with h5py.File(path, "r+") as file:
        for trajectory in file.values():
            change(trajectory)


def set_nan(trajectory):
    actions = trajectory["actions"][:]
    actions[1] = np.nan
    trajectory["actions"][...] = actions


def test_a_run_inside_of_another_runs_folder_is_refused(finished, capsys):
    words = [*TINY, f"output={finished}", "stage2.from_stage1=[]", "stage2.offline_fraction=0"]
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for name in ("a/stage1", "a/stage1/x"):
        error = fails(capsys, "stage2", *words, *loaded(finished / "a" / "base"), f"name={name}")
        assert f"would lie in the folder of another run, {finished / 'a'}: choose another name=" in error
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("algorithm", "kind", "lacks"),
    [
        ("dsrl_aw_mle", "TD3", "its actor does not fit"),
        ("dsrl_aw_mle", "DSRLSAC", "it has no q_action"),
        ("dsrl_na_published", "BestOfN", "it has no actor"),
    ],
)
def test_what_stage_1_does_not_learn_is_told_before_its_rollouts(finished, capsys, algorithm, kind, lacks):
    words = [f"algorithm={algorithm}", f"stage1.algorithm._target_=dsrl_torchrl.agents.{kind}"]
    words += [*SMOKE, *loaded(finished / "a" / "base"), "stage2.from_stage1=[actor,critics]"]
    error = fails(capsys, "run", *words)
    assert f"cannot begin with what {kind} learns" in error and lacks in error
    assert not list(Path().rglob("*.safetensors"))


def test_a_loaded_policy_has_to_be_differentiable_for_stage_1s_algorithm_too(finished, monkeypatch, capsys):
    monkeypatch.setattr("dsrl_torchrl.agents.IQL.through_decoder", True)
    asked = []
    monkeypatch.setattr("dsrl_torchrl.cli.inputs.require_differentiable", lambda policy, name: asked.append(name))
    words = [*SMOKE, *loaded(finished / "a" / "base"), "stage1.algorithm._target_=dsrl_torchrl.agents.IQL"]
    assert "DSRLAWMLE cannot begin with what IQL learns" in fails(capsys, "run", *words)
    assert asked == ["IQL"]


@pytest.mark.parametrize("kind", ["GoldenNoise", "PPO"])
def test_what_learns_nothing_offline_is_no_stage_1(capsys, kind):
    target = f"stage1.algorithm._target_=dsrl_torchrl.agents.{kind}"
    words = [*SMOKE, "algorithm=offline_sac", target, "stage2.from_stage1=[]"]
    assert f"{kind} learns nothing offline" in fails(capsys, "stage1", *words)
    assert not list(Path().rglob("*.safetensors"))


def test_a_run_leaves_what_another_one_writes_below_alone(finished, capsys):
    """``name=a`` where ``name=a/b/seed0`` was there before."""
    part = finished / "a" / "b" / "seed0" / ".metrics.csv.1234.part"
    part.parent.mkdir(parents=True)
    part.touch()
    own = [finished / "a" / folder / ".artifact.json.1234.part" for folder in ("", "stage2")]
    for path in own:
        path.touch()
    main(["run", *TINY, f"output={finished}", "name=a"])
    assert part.exists() and not any(path.exists() for path in own)


def copy_demos(finished):
    for suffix in ("h5", "json"):
        content = (finished / "a" / "demos" / f"trajectory.{suffix}").read_bytes()
        Path(f"demos.{suffix}").write_bytes(content)


def test_other_contents_under_the_same_name(finished, capsys):
    copy_demos(finished)
    words = [*TINY, "task.demonstrations.path=demos.h5"]
    main(["base", *words])
    damage("demos.h5", lambda trajectory: trajectory["actions"].__setitem__(0, 0.5))
    assert "demonstrations_sha256" in fails(capsys, "base", *words)


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
