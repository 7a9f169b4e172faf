"""ManiSkill's diffusion-policy baseline, against chunks that its own agents decoded (`sources/maniskill.py`)."""

from __future__ import annotations

from dsrl_torchrl.policies.adapters.maniskill_diffusion import load_maniskill_diffusion

from .cases import FIXTURES, check_chunk, maniskill_rgb_checkpoint

SIZES = {"obs_horizon": 2, "pred_horizon": 8, "n_groups": 4, "sampler_steps": 8}


def test_the_chunk_that_its_state_policy_decodes():
    policy = load_maniskill_diffusion(FIXTURES / "maniskill_state" / "best_eval_success_at_end.pt", **SIZES)
    assert policy.first_action == 1
    check_chunk(policy, "maniskill_state", ["state"])


def test_the_chunk_that_its_image_policy_decodes(tmp_path):
    policy = load_maniskill_diffusion(maniskill_rgb_checkpoint(tmp_path), {"rgb": "camera"}, **SIZES)
    assert policy.in_keys == ["camera", "observation"]
    check_chunk(policy, "maniskill_rgb", ["rgb", "state"])
