"""DPPO, against chunks that its own code decoded (`sources/dppo.py`)."""

from __future__ import annotations

import pytest

from dsrl_torchrl.policies.adapters.dppo import load_dppo

from .cases import FIXTURES, check_chunk

CASES = {
    "dppo_residual_mlp": {"activation": "ReLU"},
    "dppo_plain_mlp": {},
    "dppo_unet": {"pred_horizon": 4, "n_groups": 4},
    "dppo_unet_condition": {"pred_horizon": 4, "activation": "ReLU"},
    "dppo_fine_tuned": {"fine_tuned_below": 4},
}


def load(name, **options):
    folder = FIXTURES / name
    common = {
        "normalization": folder / "normalization.npz",
        "obs_horizon": 2,
        "sampler_steps": 10,
        "denoised_clip_value": 0.9,
    }
    return load_dppo(folder / "state_3.pt", **common | CASES[name] | options)


@pytest.mark.parametrize("name", CASES)
def test_the_chunk_that_its_own_code_decodes(name):
    policy = load(name)
    assert policy.first_action == 0
    check_chunk(policy, name, ["state"])
