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

from .pipeline_run import TINY, fails


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


def test_plain_sac_is_one_override_away(capsys):
    """No stage 1, no offline data; with ``init_actor`` it starts from stage 1's actor."""
    main(["run", *TINY, "algorithm=dsrl_sac", "name=sac"])
    assert not os.path.exists("runs/sac/stage1")
    out = capsys.readouterr().out
    assert "stage2_stochastic" in out
    assert "stage1" not in out
    main(["run", *TINY, "algorithm=dsrl_sac", "algorithm.init_actor=true", "algorithm.init_critics=true", "name=warm"])
    assert "stage1 " in capsys.readouterr().out


@pytest.mark.parametrize(
    "switches", [["stage1.use_na=false"], ["stage1.aw_mle=false"], ["stage1.use_demonstrations=false"]], ids="-".join
)
def test_the_switches_of_stage_1(finished, capsys, switches):
    arguments = [*TINY, f"base_policy.checkpoint={finished / 'a' / 'base'}", "name=s", *switches]
    if "stage1.use_na=false" in switches:
        assert "init_critics" in fails(capsys, "stage2", *arguments)  # no Q^A to start from
        arguments.append("algorithm.init_critics=false")
    main(["stage2", *arguments])
    assert "stage 2: " in capsys.readouterr().out


def test_demonstrations_get_their_noise_by_inversion(finished, capsys):
    """TD on the noise can then use them; the cache is found again by another run of the same base policy."""
    switches = ["stage1.use_na=false", "stage1.inversion=retrieval", "algorithm=dsrl_sac"]
    demos = f"task.demonstrations.path={finished / 'a' / 'demos' / 'trajectory.h5'}"
    for name in ("i", "j"):
        arguments = [*TINY, f"base_policy.checkpoint={finished / 'a' / 'base'}", demos, *switches, f"name={name}"]
        main(["stage1", *arguments])
        assert "inversion: " in capsys.readouterr().out
    assert len(list(Path("runs/alias_cache").iterdir())) == 1


def test_the_bound_is_chosen_from_the_base_policy(finished, capsys):
    arguments = [*TINY, f"base_policy.checkpoint={finished / 'a' / 'base'}", "latent.action_magnitude=auto", "name=m"]
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
        (["run", "task=toy", "latent.action_magnitude=big"], "action_magnitude must be positive or auto"),
        (
            ["run", "task=toy", "base_policy=shortcut", "base_policy.policy.sampler_steps=3"],
            "sampler_steps must be 1, 2",
        ),
        (["run", "task=toy", "base_policy.policy.network.kind=cnn"], "network.kind must be one of"),
        (["run", "task=toy", "networks.activation=sine"], "activation must be one of"),
        (["run", "task=toy", "stage1.use_na=false", "stage1.inversion=magic"], "inversion must be one of"),
        (["run", "task=toy", "stage1.inversion=retrieval"], "inversion is read with use_na=false only"),
        (["run", "task=toy", "stage1.updates=0"], "updates must be positive"),
        (["run", "task=toy", "stage1.beta_latent=-1"], "beta_latent must be positive"),
        (["run", "task=toy", "algorithm.offline_fraction=1"], "offline_fraction"),
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
