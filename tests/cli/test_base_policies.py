"""Base policies that were not cloned by the run: a user's own, and some that do not fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsrl_torchrl.cli.main import main
from dsrl_torchrl.policies import FlowPolicy, save_policy

from .pipeline_run import TINY, fails, loaded

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


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
