"""Tiny random VLAs in LeRobot's own environment, served and steered; DSRL_LEROBOT_PYTHON names its interpreter.

DSRL_LEROBOT_PYTHON=~/lerobot/bin/python python -m pytest tests/policies/adapters/test_lerobot_server.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.cli.main import main
from dsrl_torchrl.policies import probe, steerability
from dsrl_torchrl.policies.adapters import serve_policy
from dsrl_torchrl.policies.adapters.policy_server import PolicyServer
from tests.cli.pipeline_run import TINY

INTERPRETER = os.environ.get("DSRL_LEROBOT_PYTHON", "")
TINY_VLA = Path(__file__).with_name("tiny_vla.py")
KINDS = ("smolvla", "pi05", "pi0")
ENTRIES = {"observation.state": "observation", "observation.images.image": "pixels"}
FEW = ["stage2.total_env_steps=64", "stage2.warmup_env_steps=32", "stage2.checkpoint_env_steps=64"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INTERPRETER, reason="DSRL_LEROBOT_PYTHON names no interpreter that has LeRobot"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def lerobot(*arguments, **options):
    """LeRobot's interpreter, which gets nothing of this environment's packages."""
    there = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen([INTERPRETER, *map(str, arguments)], env=there, text=True, **options)


def serving(checkpoint):
    """The file by itself, but where LeRobot's own sizes have to be shrunk first."""
    command = [serve_policy.__file__] if checkpoint.name == "smolvla" else [TINY_VLA, "serve", serve_policy.__file__]
    return [*command, "--lerobot", checkpoint, "--task", "pick up the bowl", "--port", "0"]


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vla") / request.param
    made = lerobot(TINY_VLA, "make", request.param, folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out, _ = made.communicate(timeout=250)
    assert made.returncode == 0, out
    return folder


@pytest.fixture(scope="module")
def url(checkpoint):
    server = lerobot(*serving(checkpoint), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    try:
        yield next(line.split(" at ")[1].split(",")[0] for line in server.stdout if line.startswith("serving "))
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 143


@pytest.fixture
def policy(url):
    policy = PolicyServer(url, entries=ENTRIES).freeze()
    yield policy
    policy.connection.close()


@pytest.fixture
def observations():
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    return TensorDict({"observation": torch.rand(8, 4) * 2 - 1, "pixels": pixels}, [8])


def test_it_is_a_function_of_observation_and_noise(policy, observations):
    assert (policy.noise_horizon, policy.noise_dim, policy.pred_horizon, policy.action_dim) == (10, 32, 10, 2)
    assert policy.n_action_steps == 5 and policy.content_hash() is not None
    noise = torch.randn(8, 10, 32)
    chunk = policy.decode(observations, noise)
    assert torch.equal(policy.decode(observations, noise), chunk)
    rows = torch.cat([policy.decode(observations[i : i + 1], noise[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(rows, chunk, atol=1e-5, rtol=1e-5)
    for name in observations.keys():
        changed = observations.clone().set(name, observations[name].flip(0))
        assert (policy.decode(changed, noise) - chunk).abs().max() > 1e-3, name
    padded = noise.clone()
    padded[..., 2:] = torch.randn(8, 10, 30)  # beyond the actions' dims: they steer, too
    assert (policy.decode(observations, padded) - chunk).abs().max() > 1e-2
    probe(policy, observations)
    assert not steerability(policy, observations, n_noises=4).too_small


def test_a_few_updates(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entries = "{observation.state: observation, observation.images.image: pixels}"
    server = ["base_policy=server", f"base_policy.load.url={url}", f"base_policy.load.entries={entries}"]
    env = ["task.env.image_size=64", "task.env.goal=null", "latent.noise_layout=repeat"]
    main(["stage2", *TINY, *FEW, "algorithm=dsrl_sac", *server, *env, "name=v"])
    rows = Path("runs/v/metrics.csv").read_text().splitlines()
    assert len(rows) > 1


def test_weights_that_do_not_fit_are_refused(checkpoint):
    """LeRobot's loaders of π0 and π0.5 print a warning, and go on with random ones."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"max_action_dim": 24}))
    server = lerobot(*serving(checkpoint), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, error = server.communicate(timeout=250)
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert server.returncode == 1
    last = error.splitlines()[-1]
    assert last.startswith("serve_policy: error: --lerobot: ") and "action_in_proj" in last, error
