"""LeRobot's DiffusionPolicy, against chunks that LeRobot 0.6.1 decoded (`sources/lerobot.py`)."""

from __future__ import annotations

import pytest

from dsrl_torchrl.policies.adapters.lerobot_diffusion import load_lerobot_diffusion

from .cases import check_chunk, lerobot_checkpoint

STATES = {"observation.state": "observation", "observation.environment_state": "world"}
IMAGES = {"observation.state": "observation", "observation.images.a": "left", "observation.images.b": "right"}


@pytest.mark.parametrize("name", ["lerobot_states", "lerobot_shared_encoder", "lerobot_own_encoders"])
def test_the_chunk_that_lerobot_decodes(tmp_path, name):
    folder = lerobot_checkpoint(name, tmp_path / "there")
    entries = STATES if name == "lerobot_states" else IMAGES
    policy = load_lerobot_diffusion(folder, entries, sampler_steps=8)
    assert policy.frozen
    assert policy.first_action == 1
    theirs = {ours: there for there, ours in entries.items()}
    check_chunk(policy, name, [theirs[key] for key in policy.in_keys])
