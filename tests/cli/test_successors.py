"""The successors' algorithms through the whole pipeline, from a base policy that exists."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from dsrl_torchrl.cli import latent_env, steered_inputs
from dsrl_torchrl.cli.main import main
from dsrl_torchrl.cli.steps import noise_centre
from dsrl_torchrl.data.macro_transitions import load_transitions
from dsrl_torchrl.files import seal, unseal, write_atomically
from dsrl_torchrl.policies import BasePolicy

from .pipeline_run import SMOKE, fails, loaded

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

#: Those that begin with stage 1, and those that have none.
SUCCESSORS = {"golden_noise": False, "lp_ds": True, "lps": True}


@pytest.mark.parametrize("algorithm", SUCCESSORS)
def test_it_runs_through(finished, capsys, algorithm):
    main(["run", *SMOKE, *loaded(finished / "a" / "base"), f"algorithm={algorithm}", "name=x"])
    out = capsys.readouterr().out
    assert "stage2_deterministic" in out
    assert ("stage1_deterministic" in out) == SUCCESSORS[algorithm]


def test_golden_noise_has_no_stage_1(finished, capsys):
    words = [*SMOKE, *loaded(finished / "a" / "base"), "algorithm=golden_noise", "name=x"]
    assert "GoldenNoise learns nothing offline: run stage2" in fails(capsys, "stage1", *words)
    assert not Path("runs/x/stage1").exists()


def test_a_subspace_is_measured_once_and_steered_in(finished, capsys):
    words = [*SMOKE, *loaded(finished / "a" / "base"), "algorithm=pss", "name=x"]
    main(["stage1", *words])
    assert "noise subspace: 6 of 8 dimensions carry " in capsys.readouterr().out
    basis = Path("runs/x/subspace/basis.safetensors")
    written = basis.stat().st_mtime_ns
    main(["run", *words])
    assert "stage2_deterministic" in capsys.readouterr().out
    assert basis.stat().st_mtime_ns == written
    with safe_open(basis, "pt") as file:
        assert file.get_slice("basis").get_shape() == [8, 6]
    assert "belongs to another configuration" in fails(capsys, "stage1", *words, "latent.subspace_dim=2")


@pytest.mark.parametrize("kept", [False, True])
def test_a_centre_is_searched_once_and_steered_around_where_that_is_better(finished, capsys, monkeypatch, kept):
    def search_centre(*arguments):
        choice, *data = noise_centre.search_centre(*arguments)
        return replace(choice, kept=kept), *data

    monkeypatch.setattr(steered_inputs, "search_centre", search_centre)
    words = [*SMOKE, *loaded(finished / "a" / "base"), "latent.centre_env_steps=400", "name=x"]
    main(["stage1", *words])
    assert " constant noises, by " in capsys.readouterr().out
    centre, rollouts = (Path("runs/x/centre") / name for name in ("centre.safetensors", "rollouts.safetensors"))
    written = centre.stat().st_mtime_ns
    main(["run", *words])
    out = capsys.readouterr().out
    assert "noise centre: " in out and "base_prior " in out and ("base_centred " in out) == kept
    around, plain = (json.loads((folder / "summary.json").read_text()) for folder in (Path("runs/x"), finished / "a"))
    for own in ("base_prior", "base_zero"):  # of the base policy itself: the centre is nothing to its user
        assert around["evaluations"][own] == plain["evaluations"][own]
    assert not kept or around["evaluations"]["base_centred"] != around["evaluations"]["base_prior"]
    assert around["centre"]["env_steps"] >= 400 and around["centre"]["kept"] == kept
    # All of its episodes are learned from, too.
    parts = [load_transitions(path) for path in (rollouts, Path("runs/x/stage1/rollouts.safetensors"))]
    assert around["stage1"]["transitions"] == sum(map(len, parts)) > len(parts[1])
    main(["diagnose", *words, "diagnosis.resets=2", "diagnosis.repeats=2"])
    assert ("measured on the base policy around its noise centre" in capsys.readouterr().out) == kept
    assert centre.stat().st_mtime_ns == written
    with safe_open(centre, "pt") as file:
        assert file.get_slice("centre").get_shape() == [4, 2]
    for other in ("latent.centre_env_steps=500", "networks.in_keys=[observation]"):
        assert "belongs to another configuration" in fails(capsys, "stage1", *words, other)
    main(["run", *words])  # finished
    assert "exists" in capsys.readouterr().out
    centre.write_bytes(centre.read_bytes()[:-1] + b"x")
    assert "centre.safetensors" in fails(capsys, "run", *words)


def test_a_search_without_a_trial_is_refused(finished, capsys):
    """Of a folder that was made before there was one."""
    words = [*SMOKE, *loaded(finished / "a" / "base"), "latent.centre_env_steps=400", "name=x"]
    main(["stage1", *words])
    capsys.readouterr()
    marker = Path("runs/x/centre/artifact.json")
    stored = unseal(marker)
    del stored["facts"]["kept"]
    write_atomically(marker, seal(stored))
    assert "runs/x/centre is of an older version, without a trial: choose another name=" in fails(capsys, "run", *words)


@pytest.mark.parametrize(
    ("words", "data"),
    [
        (["latent.base_features=true"], "both"),
        (["algorithm=dsrl_sac"], "both"),  # reads the noise, which both have
        (["algorithm=dsrl_sac", "stage1.rollout_env_steps=0"], "search"),
        (["latent.subspace_dim=6", "stage1.rollout_env_steps=0"], "search"),
        (
            ["algorithm=dsrl_sac", "latent.subspace_dim=6"],
            "rollouts",
        ),  # a whole noise is no latent action of a subspace
    ],
)
def test_a_search_is_offline_data_where_they_can_be_read(finished, words, data):
    main(["stage1", *SMOKE, *loaded(finished / "a" / "base"), "latent.centre_env_steps=400", *words, "name=x"])
    paths = {"search": "centre/rollouts.safetensors", "rollouts": "stage1/rollouts.safetensors"}
    there = {
        name: len(load_transitions(Path("runs/x") / path)) for name, path in paths.items() if data in (name, "both")
    }
    facts = json.loads(Path("runs/x/stage1/artifact.json").read_text())["facts"]
    assert facts["transitions"] == sum(there.values())


def test_images_that_fit_in_no_memory_are_refused_before_a_search(finished, capsys, monkeypatch):
    monkeypatch.setattr(latent_env, "available_memory", lambda: 10**5)
    pictures = ["task.env.image_size=24", "networks.in_keys=[observation,pixels]", "stage1.use_demonstrations=false"]
    words = [*SMOKE, *loaded(finished / "a" / "base"), *pictures, "stage1.rollout_env_steps=0"]
    assert "GB are available: lower " in fails(capsys, "run", *words, "latent.centre_env_steps=400", "name=x")
    assert not Path("runs/x/centre").exists()


def test_a_finished_run_is_not_searched_for_another_centre(finished, capsys):
    words = [*SMOKE, *loaded(finished / "a" / "base"), "name=x"]
    main(["run", *words])
    written = Path("runs/x/config.yaml").read_text()
    capsys.readouterr()
    assert "belongs to another configuration" in fails(capsys, "eval", *words, "latent.centre_env_steps=400")
    assert not Path("runs/x/centre").exists() and Path("runs/x/config.yaml").read_text() == written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [
                "latent.centre_env_steps=400",
                "algorithm=dsrl_sac",
                "latent.subspace_dim=6",
                "stage1.rollout_env_steps=0",
                "stage2.offline_fraction=0.5",
            ],
            "stage1.rollout_env_steps=0 leaves no offline data",
        ),
        (["latent.centre_env_steps=-1"], "latent.centre_env_steps"),
        (["latent.centre_env_steps=400", "algorithm=residual_sac"], "latent.action=residual steers no noise"),
    ],
)
def test_bad_searches(finished, capsys, words, message):
    assert message in fails(capsys, "run", *SMOKE, *loaded(finished / "a" / "base"), *words, "name=x")
    assert not Path("runs/x/stage1").exists()


def test_a_subspace_is_smaller_than_the_noise(finished, capsys):
    words = [*SMOKE, *loaded(finished / "a" / "base"), "name=x"]
    error = fails(capsys, "stage1", *words, "latent.subspace_dim=8")
    assert "latent.subspace_dim should be below the 8 dimensions" in error
    assert not Path("runs/x").exists() or not list(Path("runs/x").iterdir())


@pytest.mark.parametrize("word", ["algorithm=lps", "latent.subspace_dim=2"])
def test_what_needs_gradients_of_the_policy_is_refused_before_any_work(capsys, word):
    words = [*SMOKE, "base_policy=load", f"base_policy.load._target_={__name__}.Server", word, "name=x"]
    assert "needs a base policy that is differentiable in its noise, Server is not" in fails(capsys, "run", *words)
    assert not Path("runs/x").exists()


class Server(BasePolicy):
    """Of the toy's sizes, as one behind a server."""

    differentiable = False

    def __init__(self) -> None:
        super().__init__(action_dim=2, pred_horizon=4)
        self.freeze()

    def forward(self, observation, noise):
        return noise


def test_a_subspace_as_large_as_the_noise_is_refused_before_the_demonstrations(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["run", "task=toy", "algorithm=pss", "latent.subspace_dim=8", f"output={tmp_path}", "name=a"])
    assert "below the 8 dimensions" in capsys.readouterr().err
    assert not list(tmp_path.rglob("trajectory.h5"))
