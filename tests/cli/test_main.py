"""The command line as a user meets it: the whole pipeline on the toy task, and its steps."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from torchrl.envs import TransformedEnv

from dsrl_torchrl import seeds
from dsrl_torchrl.cli.main import main
from dsrl_torchrl.cli.steps import evaluate
from dsrl_torchrl.tensor_files import load_tensors

from .pipeline_run import SMOKE, TINY, loaded

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


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


def test_the_table_is_of_plain_returns_up_to_the_time_limit_from_held_out_starts(finished, monkeypatch):
    seen, evaluate_policies = [], evaluate.evaluate_policies

    def watched(env, policies, starts, *, progress):
        base = env
        while isinstance(base, TransformedEnv):
            base = base.base_env
        seen.append((env.gamma, base.terminate_on_success, list(starts)))
        return evaluate_policies(env, policies, starts, progress=progress)

    monkeypatch.setattr(evaluate, "evaluate_policies", watched)
    (finished / "a" / "summary.json").unlink()
    main(["eval", *TINY, f"output={finished}", "name=a"])
    assert seen == [(1.0, False, seeds.first(seeds.HELD_OUT, 4))]


def test_a_second_run_skips_everything(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    main(["run", *TINY, f"output={finished}", "name=a"])
    assert "exists" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_a_figure_that_was_changed_or_removed_is_no_reason_to_evaluate_again(finished, capsys):
    words, figure = ["run", *TINY, f"output={finished}", "name=a"], finished / "a" / "learning_curve.png"
    drawn, summary = figure.read_bytes(), (finished / "a" / "summary.json").stat().st_mtime_ns
    figure.write_bytes(drawn + b"x")
    main(words)
    assert figure.read_bytes() == drawn + b"x" and "drawn again" not in capsys.readouterr().out
    figure.unlink()
    main(words)
    out = capsys.readouterr().out
    assert figure.read_bytes() == drawn and "drawn again" in out and "held-out resets" not in out
    assert (finished / "a" / "summary.json").stat().st_mtime_ns == summary


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


@pytest.mark.parametrize("algorithm", ["dsrl_na", "td3", "redq", "best_of_n", "rlpd", "residual_sac"])
def test_every_algorithm_runs_through(finished, capsys, algorithm):
    curve = ["stage2.eval_env_steps=200", "stage2.eval_episodes=4"] if algorithm == "residual_sac" else []
    main(["run", *SMOKE, *loaded(finished / "a" / "base"), f"algorithm={algorithm}", *curve, "name=x"])
    out = capsys.readouterr().out
    assert "stage2_deterministic" in out
    assert ("stage1_deterministic" in out) == (algorithm not in ("td3", "redq", "rlpd", "residual_sac"))


@pytest.mark.parametrize("algorithm", ["td3_bc", "iql"])
def test_an_offline_baseline_ends_offline(finished, capsys, algorithm):
    demos = f"task.demonstrations.path={finished / 'a' / 'demos' / 'trajectory.h5'}"
    words = [*TINY, *loaded(finished / "a" / "base"), demos, f"algorithm={algorithm}", "stage2.total_env_steps=0"]
    main(["run", *words, "name=x"])
    out = capsys.readouterr().out
    assert "stage1_deterministic" in out and "base_zero" in out and "stage2" not in out
    main(["run", *words, "name=x"])
    assert "evaluation: runs/x/summary.json (exists)" in capsys.readouterr().out


def test_another_algorithm_in_stage_1_and_its_actor_in_stage_2(finished, capsys):
    """The on-policy two stages: imitation, then PPO."""
    words = [*SMOKE, *loaded(finished / "a" / "base"), "algorithm=ppo", "algorithm.actor_lr=1e-9", "name=ppo"]
    main(["run", *words])
    out = capsys.readouterr().out
    assert "stage1_deterministic" in out and "stage2_deterministic" in out
    folders = [Path("runs/ppo") / stage for stage in ("stage1", "stage2")]
    assert (folders[0] / "q_action.safetensors").exists() and not (folders[0] / "value.safetensors").exists()
    assert (folders[1] / "value.safetensors").exists() and not list(folders[1].glob("q_*"))
    kept = [load_tensors(folder / "kept_actor.safetensors") for folder in folders]
    for name, tensor in kept[0].items():
        torch.testing.assert_close(kept[1][name], tensor, rtol=1e-4, atol=1e-5)
    main(["run", *words])
    assert "(exists)" in capsys.readouterr().out


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


def test_a_replay_that_begins_with_the_demonstrations(finished, capsys):
    """No rollouts, no stage 1."""
    demos = f"task.demonstrations.path={finished / 'a' / 'demos' / 'trajectory.h5'}"
    words = [*TINY, *loaded(finished / "a" / "base"), demos, "stage1.rollout_env_steps=0", "name=p"]
    main(["stage2", *words, "algorithm=dsrl_na_prefilled"])
    assert "base rollouts" not in capsys.readouterr().out
    assert Path("runs/p/stage2/actor.safetensors").exists() and not Path("runs/p/stage1").exists()


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
    few = ["diagnosis.resets=3", "diagnosis.repeats=2", "diagnosis.ranking_states=4", "diagnosis.ranking_noises=3"]
    main(["diagnose", *TINY, f"output={finished}", "name=a", *few])
    report = json.loads((finished / "a/diagnosis/steerability.json").read_text())
    assert report["gap_policy"] is not None  # the critics are there
    ranking = report["critic_ranking"]
    assert (ranking["states"], ranking["noises"], ranking["repeat_error"]) == (4, 3, 0.0)
    assert ranking["q_action"] is not None and ranking["q_noise"] is not None
    assert (finished / "a/diagnosis/steerability.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "steerability.png" in said
    assert "stage 2: critics: Q^A ranks a state's noises at correlation" in said


def test_an_interruption_that_surfaces_as_another_error(monkeypatch, capfd):
    def cleaned_up_badly(arguments, interruption):
        interruption.working = True
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            raise RuntimeError("clean-up of a torch transform")

    monkeypatch.setattr("dsrl_torchrl.cli.main._main", cleaned_up_badly)
    with pytest.raises(SystemExit) as stopped:
        main(["run"])
    assert stopped.value.code == 130
    assert "Traceback" not in capfd.readouterr().err
