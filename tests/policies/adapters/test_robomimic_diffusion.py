"""robomimic's diffusion policy, against chunks that its own code decoded (`sources/robomimic.py`)."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.policies.adapters.robomimic_diffusion import load_robomimic_diffusion

from .cases import FIXTURES, case, check_chunk, flat

KEYS = ["object", "robot0_eef_pos", "robot0_gripper_qpos"]


def load(name, **options):
    return load_robomimic_diffusion(FIXTURES / name / "model_epoch_1.pth", **options)


@pytest.mark.parametrize(("name", "steps"), [("robomimic_ddpm", 8), ("robomimic_ddim", None)])
def test_the_chunk_that_its_own_code_decodes(name, steps):
    policy = load(name, entries={key: key for key in KEYS}, sampler_steps=steps)
    assert policy.first_action == 1
    check_chunk(policy, name, KEYS)


def test_one_entry_holds_all_observations_in_alphabetical_order():
    there = case("robomimic_ddpm")
    apart = load("robomimic_ddpm", entries={key: key for key in KEYS}, sampler_steps=8)
    together = load("robomimic_ddpm", sampler_steps=8)
    assert together.in_keys == ["observation"]
    chunk = apart(*(flat(there[key]) for key in KEYS), there["noise"])
    one = flat(torch.cat([there[key] for key in KEYS], -1))
    torch.testing.assert_close(together(one, there["noise"]), chunk)
