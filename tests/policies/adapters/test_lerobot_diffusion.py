"""LeRobot's DiffusionPolicy, against chunks that LeRobot 0.6.1 decoded (`sources/lerobot.py`)."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

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


def test_statistics_among_the_weights(tmp_path):
    """As LeRobot wrote them before 0.4: no processors, buffers under names without dots."""
    folder = lerobot_checkpoint("lerobot_states", tmp_path / "there")
    statistics = load_file(folder / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    weights = load_file(folder / "model.safetensors")
    for key, value in statistics.items():
        feature, statistic = key.rsplit(".", 1)
        group = "unnormalize_outputs" if feature == "action" else "normalize_inputs"
        weights[f"{group}.buffer_{feature.replace('.', '_')}.{statistic}"] = value
    save_file(weights, folder / "model.safetensors")
    for file in folder.glob("policy_*"):
        file.unlink()
    check_chunk(load_lerobot_diffusion(folder, STATES, sampler_steps=8), "lerobot_states", list(STATES))


def test_a_compiled_network_has_the_same_weights(tmp_path):
    folder = lerobot_checkpoint("lerobot_states", tmp_path / "there")
    weights = load_file(folder / "model.safetensors")
    weights = {key.replace("diffusion.unet.", "diffusion.unet._orig_mod."): value for key, value in weights.items()}
    save_file(weights, folder / "model.safetensors")
    check_chunk(load_lerobot_diffusion(folder, STATES, sampler_steps=8), "lerobot_states", list(STATES))
