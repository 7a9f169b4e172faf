"""Checkpoints: what was saved comes back, the newest of this run and no other."""

from __future__ import annotations

import random
import re
import shutil

import pytest
import torch

from dsrl_torchrl.errors import CheckpointError, NonFiniteError
from dsrl_torchrl.training import checkpoints as checkpoints_module
from dsrl_torchrl.training.checkpoints import Checkpoints, checkpoints_in
from dsrl_torchrl.training.run_state import Counters, RNGState
from dsrl_torchrl.versions import installed_versions

from .checkpoint_cases import IDENTITY, assert_example, example, make, written


def test_what_was_saved_comes_back(tmp_path):
    written(tmp_path)
    before = torch.rand(3), random.random()
    checkpoints, *_ = make(tmp_path / "other", example())
    state = RNGState().state_dict()
    checkpoints.save(7)
    after = torch.rand(3), random.random()
    again, holder, _, said = make(tmp_path / "other")
    assert again.restore() and not said
    assert_example(holder.state)
    assert torch.equal(torch.rand(3), after[0]) and random.random() == after[1]
    assert state.keys() >= {"python", "numpy", "torch_cpu"} and before[1] != after[1]


def test_the_newest_is_taken_and_two_are_kept(tmp_path):
    written(tmp_path, (100, 200, 1_500))
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-000000200", "checkpoint-000001500"]
    checkpoints, _, counters, _ = make(tmp_path)
    assert checkpoints.restore() and counters.env_steps == 1_500


def test_what_a_kill_left_beyond_the_last_two_goes_when_the_run_goes_on(tmp_path):
    for step in (200, 300, 400):
        make(tmp_path, keep=3)[0].save(step)
    (tmp_path / "checkpoint-000000400" / "manifest.json").write_text("{")
    assert make(tmp_path)[0].restore()
    assert [int(path.name[-3:]) for path in checkpoints_in(tmp_path)] == [200, 300, 400]
    assert make(tmp_path, keep=1)[0].restore()
    assert [int(path.name[-3:]) for path in checkpoints_in(tmp_path)] == [300, 400]  # not the one that is taken


def test_what_is_not_finite_is_refused_though_it_was_saved(tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(checkpoints_module, "LEARNED", ())
        make(tmp_path, {"w": torch.tensor([torch.nan])})[0].save(1)
    with pytest.raises(CheckpointError, match="no checkpoint of this run is left"):
        make(tmp_path)[0].restore()


def test_only_safetensors_and_json(tmp_path):
    files = [path for path in written(tmp_path).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_nothing_there_is_no_checkpoint(tmp_path):
    checkpoints, _, _, said = make(tmp_path / "none")
    assert not checkpoints.restore() and not said


def test_a_run_that_begins_anew_is_kept_out_of_another_ones_folder(tmp_path):
    checkpoints, *_ = make(written(tmp_path))
    with pytest.raises(CheckpointError, match="holds the checkpoints of a run"):
        checkpoints.start(resume=False)


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        ({"seed": 7}, "seed is 0 there, 7 here"),
        ({"stage": "offline"}, "stage is online there, offline here"),
        ({"loop": {"utd": 0.5, "replay_size": 10}}, r"loop is \{'utd': 1.0\} there, \{'utd': 0.5\} here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, identity, named):
    checkpoints, _, _, said = make(written(tmp_path), identity=IDENTITY | identity)
    with pytest.raises(CheckpointError, match="no checkpoint of this run is left"):
        checkpoints.restore()
    assert len(said) == 2 and re.search(named, said[0])


def test_what_is_not_finite_is_never_saved(tmp_path):
    folder = written(tmp_path)
    state = example()
    state["net"]["weight"][1, 2] = float("nan")
    checkpoints, *_ = make(folder, state)
    with pytest.raises(NonFiniteError, match=r"agent .*weight.* is NaN or infinite at step 300"):
        checkpoints.save(300)
    assert make(folder)[0].restore()


@pytest.mark.parametrize(
    "wrong",
    [{"env_steps": -5}, {"env_steps": float("nan")}, {"env_steps": 1e9}, {"updates": "3"}, {"macro_steps": 200_000}],
)
def test_counters_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "macro_steps" not in wrong else "macro steps"):
        Counters().load_state_dict(Counters().state_dict() | wrong)


def test_another_version_of_torch_is_said(tmp_path, monkeypatch):
    folder = written(tmp_path)
    here = installed_versions()
    monkeypatch.setattr(checkpoints_module, "installed_versions", lambda: here | {"torch": "9.9"})
    checkpoints, _, _, said = make(folder)
    assert checkpoints.restore()
    assert said == [
        f"checkpoint-000000200 was written by torch {here['torch']} (here 9.9): the run goes on, but not bit for bit"
    ]


def test_state_that_does_not_fit_is_named(tmp_path):
    net = torch.nn.Linear(2, 2)
    Checkpoints(tmp_path, IDENTITY, {"agent": net}).save(1)
    said = []
    with pytest.raises(CheckpointError, match="no checkpoint of this run is left"):
        Checkpoints(tmp_path, IDENTITY, {"agent": torch.nn.Linear(3, 2)}, say=said.append).restore()
    assert "agent does not fit this run" in said[0] and "\n" not in said[0]


def test_checkpoints_beyond_the_one_that_is_written_push_nothing_out(tmp_path):
    """They are damaged or another run's, or this one would have gone on from them."""
    written(tmp_path, (900, 950))
    for path in checkpoints_in(tmp_path):
        (path / "state.json").write_text("{}")
    make(tmp_path, example())[0].save(200)
    assert [path.name[-3:] for path in checkpoints_in(tmp_path)] == ["200", "900", "950"]
    assert make(tmp_path)[0].restore()


def test_a_users_copy_is_no_checkpoint(tmp_path):
    written(tmp_path)
    for name in ("checkpoint-000000100-backup", "checkpoint-000000200.tar"):
        shutil.copytree(tmp_path / "checkpoint-000000100", tmp_path / name)
    make(tmp_path, example())[0].save(300)
    assert sorted(path.name[11:] for path in tmp_path.iterdir()) == [
        "000000100-backup",
        "000000200",
        "000000200.tar",
        "000000300",
    ]
    assert [path.name[-3:] for path in checkpoints_in(tmp_path)] == ["200", "300"]
