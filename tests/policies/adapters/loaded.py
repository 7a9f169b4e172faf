"""Every source once, from its fixture: what all loaded policies have in common is tested on these."""

from __future__ import annotations

import warnings

import torch

from dsrl_torchrl.policies.adapters.dppo import load_dppo
from dsrl_torchrl.policies.adapters.lerobot_diffusion import load_lerobot_diffusion
from dsrl_torchrl.policies.adapters.maniskill_diffusion import load_maniskill_diffusion
from dsrl_torchrl.policies.adapters.robomimic_diffusion import load_robomimic_diffusion
from dsrl_torchrl.policies.adapters.stanford_diffusion import load_stanford_diffusion

from .cases import FIXTURES, maniskill_rgb_checkpoint

LEROBOT_STATES = {"observation.state": "observation", "observation.environment_state": "world"}


def load_source(source: str, tmp_path, **options):
    """Of ``SOURCES``; a DDPM's warning is not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SOURCES[source](tmp_path, **options)


SOURCES = {
    "lerobot": lambda tmp_path, **o: load_lerobot_diffusion(FIXTURES / "lerobot_states", LEROBOT_STATES, **o),
    "maniskill": lambda tmp_path, **o: load_maniskill_diffusion(
        FIXTURES / "maniskill_state" / "best_eval_success_at_end.pt", pred_horizon=8, n_groups=4, **o
    ),
    "maniskill_rgb": lambda tmp_path, **o: load_maniskill_diffusion(
        maniskill_rgb_checkpoint(tmp_path), pred_horizon=8, n_groups=4, **o
    ),
    "dppo": lambda tmp_path, **o: load_dppo(
        FIXTURES / "dppo_residual_mlp" / "state_3.pt",
        FIXTURES / "dppo_residual_mlp" / "normalization.npz",
        obs_horizon=2,
        activation="ReLU",
        **o,
    ),
    "stanford": lambda tmp_path, **o: load_stanford_diffusion(FIXTURES / "stanford_ddpm" / "latest.ckpt", **o),
    "robomimic": lambda tmp_path, **o: load_robomimic_diffusion(FIXTURES / "robomimic_ddpm" / "model_epoch_1.pth", **o),
}


def random_entries(policy, *batch: int) -> list[torch.Tensor]:
    """An entry of the right shape for each of ``in_keys``."""
    found = []
    for feature in policy.encoder.features:
        first = policy.obs_horizon * feature.size
        if feature.rest:
            found.append(torch.randint(0, 256, (*batch, first, 16, 16), dtype=torch.uint8))
        else:
            found.append(torch.randn(*batch, first))
    return found
