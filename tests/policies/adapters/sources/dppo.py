"""Fixtures of irom-princeton/dppo (commit cc7234ad), made with its own networks, samplers and env wrapper.

PYTHONPATH=.:<its checkout> python -m tests.policies.adapters.sources.dppo   # torch, einops, hydra, omegaconf
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

FIXTURES = Path(__file__).parents[1] / "fixtures"
CLIP = 0.9
STEPS, OBSERVATION, ACTION, HORIZON, HISTORY = 10, 5, 2, 4, 2
SIZES = {"action_dim": ACTION, "cond_dim": OBSERVATION * HISTORY}
MLP = SIZES | {"horizon_steps": HORIZON, "time_dim": 8}
UNET = SIZES | {"diffusion_step_embed_dim": 4, "dim": 8, "dim_mults": (1, 1), "kernel_size": 3, "n_groups": 4}
#: network, its arguments, steps of DDPM that are fine-tuned
CASES = {
    "dppo_residual_mlp": ("mlp", MLP | {"mlp_dims": [16] * 3, "residual_style": True, "activation_type": "ReLU"}, 0),
    "dppo_plain_mlp": ("mlp", MLP | {"mlp_dims": [16, 24], "cond_mlp_dims": [12, 6], "use_layernorm": True}, 0),
    "dppo_unet": ("unet", UNET | {"cond_predict_scale": True}, 0),
    "dppo_unet_condition": (
        "unet",
        UNET | {"cond_mlp_dims": [12, 12, 12, 6], "n_groups": None, "activation_type": "ReLU"},
        0,
    ),
    "dppo_fine_tuned": ("mlp", MLP | {"mlp_dims": [16] * 3, "residual_style": True, "use_layernorm": True}, 4),
}


def main() -> None:
    """Writes a checkpoint and the chunk that its code decodes for each case."""
    sys.modules["gym"] = mock.MagicMock(Env=object, Wrapper=object)
    sys.modules["imageio"] = mock.MagicMock()
    from env.gym_utils.wrapper.mujoco_locomotion_lowdim import MujocoLocomotionLowdimWrapper
    from model.diffusion.diffusion import DiffusionModel
    from model.diffusion.diffusion_eval import DiffusionEval
    from model.diffusion.diffusion_vpg import VPGDiffusion
    from model.diffusion.mlp_diffusion import DiffusionMLP
    from model.diffusion.unet import Unet1D

    for name, (kind, arguments, fine_tuned) in CASES.items():
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        network = {"mlp": DiffusionMLP, "unet": Unet1D}[kind](**arguments)
        common = {
            "horizon_steps": HORIZON,
            "obs_dim": OBSERVATION,
            "action_dim": ACTION,
            "denoising_steps": 20,
            "denoised_clip_value": CLIP,
            "device": "cpu",
        }
        _train(DiffusionModel(network=network, **common))
        if fine_tuned:
            model = VPGDiffusion(actor=network, critic=torch.nn.Linear(2, 2), ft_denoising_steps=fine_tuned, **common)
            for parameter in model.actor_ft.parameters():
                parameter.data.mul_(1.1)
            content = {"itr": 7, "model": model.state_dict()}
        else:
            model = DiffusionModel(network=network, **common)
            average = copy.deepcopy(model)
            for parameter in average.parameters():
                parameter.data.mul_(0.5)
            content = {"epoch": 3, "model": model.state_dict(), "ema": average.state_dict()}
        folder = FIXTURES / name
        folder.mkdir(exist_ok=True)
        torch.save(content, folder / "state_3.pt")
        low, width = rng.normal(size=OBSERVATION), rng.uniform(1, 2, OBSERVATION)
        action_low, action_width = rng.normal(size=ACTION), rng.uniform(1, 2, ACTION)
        bounds = {
            "obs_min": low,
            "obs_max": low + width,
            "action_min": action_low,
            "action_max": action_low + action_width,
        }
        np.savez(folder / "normalization.npz", **bounds)

        reference = DiffusionEval(
            network_path=folder / "state_3.pt",
            network=copy.deepcopy(network),
            # its DDIM counts sampler steps, ours the diffusion steps: 2 of 10 sampler steps are 4 of 20
            ft_denoising_steps=fine_tuned * STEPS // 20,
            use_ddim=True,
            ddim_steps=STEPS,
            **common,
        ).eval()
        wrapper = object.__new__(MujocoLocomotionLowdimWrapper)
        vars(wrapper).update(bounds)
        observation = (low + width * rng.uniform(-0.2, 1.2, (3, HISTORY, OBSERVATION))).astype(np.float32)
        noise = torch.randn(3, HORIZON, ACTION)
        state = torch.from_numpy(wrapper.normalize_obs(observation)).float()
        with mock.patch("torch.randn", lambda *args, noise=noise, **kwargs: noise.clone()):
            chunk = wrapper.unnormalize_action(reference({"state": state}, deterministic=True).trajectories.numpy())
        entries = {"state": torch.from_numpy(observation), "noise": noise}
        save_file({**entries, "chunk": torch.from_numpy(chunk).float().contiguous()}, folder / "case.safetensors")
        print(name, chunk.shape, float(np.abs(chunk).max()))


def _train(model: torch.nn.Module) -> None:
    """A little: a random network drives every action to its bound, where a wrong one would, too."""
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(1_500):
        state = torch.rand(128, HISTORY, OBSERVATION) * 2 - 1
        chunk = state[:, :1, :ACTION] + 0.6 * torch.rand(128, HORIZON, ACTION) - 0.3
        optimiser.zero_grad()
        model.loss(chunk.clamp(-1, 1), {"state": state}).backward()
        optimiser.step()


if __name__ == "__main__":
    main()
