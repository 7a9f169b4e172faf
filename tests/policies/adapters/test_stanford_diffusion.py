"""real-stanford/diffusion_policy, against chunks that its own code decoded (`sources/stanford.py`)."""

from __future__ import annotations

import pytest

from dsrl_torchrl.policies.adapters.stanford_diffusion import load_stanford_diffusion

from .cases import FIXTURES, check_chunk


@pytest.mark.parametrize(("name", "first_action"), [("stanford_ddpm", 1), ("stanford_ddim", 2)])
def test_the_chunk_that_its_own_code_decodes(name, first_action):
    steps = {"sampler_steps": 8} if name == "stanford_ddpm" else {}
    policy = load_stanford_diffusion(FIXTURES / name / "latest.ckpt", **steps)
    assert policy.first_action == first_action
    check_chunk(policy, name, ["obs"])
