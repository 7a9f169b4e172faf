"""Checkpoints that other projects trained, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.main import main
from dsrl_torchrl.cli.schema import leaves
from dsrl_torchrl.policies.adapters.dppo_mlp import DiffusionMLP, ResidualMLP

from .pipeline_run import TINY, fails
from .test_conf import FOREIGN

pytestmark = [pytest.mark.usefixtures("in_an_empty_folder"), pytest.mark.filterwarnings("ignore:DDPM of")]
FIXTURES = Path(__file__).parents[1] / "policies" / "adapters" / "fixtures"
DPPO = ["base_policy=dppo", "base_policy.load.path=state_1.pt", "base_policy.load.action_dim=2"]


@pytest.fixture
def checkpoint(in_an_empty_folder):
    """As DPPO saves one, of the toy env's sizes: 2 observed numbers, 4 actions of 2."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DiffusionMLP(ResidualMLP(8 + 8 + 2, 32, 8, blocks=1, activation="Mish", norm=False), 8, None)
    torch.save({"epoch": 1, "model": {f"network.{key}": t for key, t in network.state_dict().items()}}, "state_1.pt")


@pytest.mark.slow
def test_diagnose(checkpoint):
    main(["diagnose", *TINY, *DPPO, "name=a", "diagnosis.resets=2", "diagnosis.repeats=2"])
    assert json.loads(Path("runs/a/diagnosis/steerability.json").read_text())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base_policy.load.path=nowhere.pt"], "cannot read the checkpoint nowhere.pt"),
        (["base_policy.load.in_key=state"], "the base policy reads state, but the env gives"),
        (["task.obs_horizon=2"], "the base policy has obs_horizon 1"),
        (["base_policy.load.activation=Swish"], "base_policy.load.activation should be 'Mish', 'ReLU'"),
        (["base_policy.load.sampler_steps=3"], "sampler_steps=3 would start in the middle"),
        (["base_policy.load.entries={}"], "unknown option base_policy.load.entries: load_dppo has no such argument"),
    ],
)
def test_mistakes_are_one_line_before_any_work(checkpoint, capsys, words, message):
    assert message in fails(capsys, "stage2", *TINY, *DPPO, *words)
    assert not Path("runs").exists()


def test_a_policy_of_other_sizes(capsys):
    path = FIXTURES / "stanford_ddpm" / "latest.ckpt"
    words = ["base_policy=stanford_diffusion", f"base_policy.load.path={path}", "task.obs_horizon=2"]
    assert "expects observation [*B, 10] (2 steps of history)" in fails(capsys, "stage2", *TINY, *words)


def test_lerobots_features_have_dots_in_their_names(capsys):
    words = ["base_policy=lerobot_diffusion", f"base_policy.load.path={FIXTURES / 'lerobot_states'}"]
    entries = "base_policy.load.entries={observation.environment_state: world}"
    assert "none is given for observation.environment_state" in fails(capsys, "stage2", *TINY, *words)
    assert "the base policy has obs_horizon 2" in fails(capsys, "stage2", *TINY, *words, entries)
    load = compose(["task=toy", *words, entries]).to_dict()["base_policy"]["load"]
    assert load["entries"] == {"observation.state": "observation", "observation.environment_state": "world"}


@pytest.mark.parametrize("source", FOREIGN)
def test_every_argument_has_a_meaning(source):
    words = ["task=toy", f"base_policy={source}", "base_policy.load.path=x", "base_policy.load.sampler_steps=8"]
    shown = {leaf.name: leaf.meaning for leaf in leaves(compose(words)) if leaf.name.startswith("base_policy.load.")}
    assert shown["base_policy.load.sampler_steps"].startswith("DDIM steps")
    assert all(meaning for name, meaning in shown.items() if ".entries." not in name)
