"""A learner on another device than its simulator: on a simulated device anywhere, on CUDA where there is one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import REDQ
from dsrl_torchrl.envs.toy import PointReachEnv
from tests.agents.cases import AGENTS, Leaning
from tests.agents.on_a_device import check_bridge, check_training, pixel_env, state_env

ROOT = Path(__file__).resolve().parents[2]
ENVS = pytest.mark.parametrize("make_env", [state_env, pixel_env], ids=["states", "pixels"])
EVERY_AGENT = pytest.mark.parametrize("kind", AGENTS, ids=lambda kind: kind.__name__)


def on_a_simulated_device(*arguments):
    """In a process of its own: registering a device is for good."""
    command = [sys.executable, "-m", "tests.agents.on_a_device", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_whatever_is_above_the_simulator_is_on_the_learners_device():
    on_a_simulated_device("bridge")


def test_an_update_asks_the_host_for_nothing():
    on_a_simulated_device("update")


@pytest.mark.slow
def test_both_stages_of_every_agent_on_another_device():
    on_a_simulated_device("training")


@ENVS
def test_without_another_device_there_is_no_bridge(make_env):
    env = make_env("cpu")
    assert env.transform is env.decoder
    assert env.rollout(2, break_when_any_done=False).shape == (4, 2)


def needs_cuda(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


@needs_cuda
@ENVS
def test_the_bridge_to_cuda(make_env):
    check_bridge(make_env, "cuda")


@needs_cuda
def test_a_simulator_on_cuda_needs_none():
    env = LatentActionEnv(PointReachEnv(num_envs=4, device="cuda"), Leaning().to("cuda"))
    assert env.transform is env.decoder
    assert env.rollout(3, break_when_any_done=False)["next", "reward"].device.type == "cuda"


@needs_cuda
@ENVS
@EVERY_AGENT
def test_both_stages_on_cuda(kind, make_env, tmp_path):
    check_training(kind, make_env, "cuda", tmp_path)


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in AGENTS if kind is not REDQ], ids=lambda kind: kind.__name__)
def test_compiled_and_captured(kind, tmp_path):
    """Every combination of parts is made often enough to be captured in a CUDA graph."""
    check_training(kind, state_env, "cuda", tmp_path, updates=48, compile=True)
