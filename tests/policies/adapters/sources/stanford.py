"""Fixtures of real-stanford/diffusion_policy (commit 5ba07ac6), made with its own policies, workspace and normaliser.

PYTHONPATH=.:<its checkout> python -m tests.policies.adapters.sources.stanford   # torch, diffusers, hydra, dill, einops
"""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCHEDULER = {"num_train_timesteps": 100, "beta_start": 0.0001, "beta_end": 0.02, "clip_sample": True}
CASES = {
    "stanford_ddpm": {
        "noise_scheduler": {
            "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler",
            "beta_schedule": "squaredcos_cap_v2",
            "variance_type": "fixed_small",
            "prediction_type": "epsilon",
        },
        "policy": {"oa_step_convention": True, "pred_action_steps_only": False, "num_inference_steps": 100},
        "film_scale": True,
    },
    "stanford_ddim": {
        "noise_scheduler": {
            "_target_": "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
            "beta_schedule": "linear",
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "prediction_type": "sample",
        },
        "policy": {"oa_step_convention": False, "pred_action_steps_only": False, "num_inference_steps": 8},
        "film_scale": False,
    },
}


def main() -> None:
    """Writes a checkpoint and the chunk that its code decodes for each case."""
    sys.modules["zarr"] = types.SimpleNamespace(Array=type("Array", (), {}))  # only for isinstance
    from diffusers import DDIMScheduler, DDPMScheduler
    from diffusion_policy.model.common.normalizer import LinearNormalizer
    from diffusion_policy.model.diffusion.conditional_unet1d import ConditionalUnet1D
    from diffusion_policy.policy.diffusion_unet_lowdim_policy import DiffusionUnetLowdimPolicy
    from diffusion_policy.workspace.base_workspace import BaseWorkspace
    from omegaconf import OmegaConf

    class Workspace(BaseWorkspace):
        include_keys = ("global_step", "epoch")

    for name, case in CASES.items():
        torch.manual_seed(0)
        unet = {
            "input_dim": 2,
            "global_cond_dim": 10,
            "diffusion_step_embed_dim": 4,
            "down_dims": [8, 16],
            "kernel_size": 3,
            "n_groups": 4,
            "cond_predict_scale": case["film_scale"],
        }
        scheduler = SCHEDULER | case["noise_scheduler"]
        config = OmegaConf.create(
            {
                "horizon": 8,
                "n_obs_steps": 2,
                "n_action_steps": 6,
                "obs_as_global_cond": True,
                "policy": {
                    "_target_": "diffusion_policy.policy.diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy",
                    "model": unet,
                    "noise_scheduler": scheduler,
                    "horizon": "${horizon}",
                    "obs_dim": 5,
                    "action_dim": 2,
                    "n_action_steps": "${eval:'${n_action_steps}+0'}",
                    "n_obs_steps": "${n_obs_steps}",
                    "obs_as_global_cond": "${obs_as_global_cond}",
                    **case["policy"],
                },
            }
        )
        kind = DDPMScheduler if "DDPM" in scheduler.pop("_target_") else DDIMScheduler
        options = case["policy"] | {"num_inference_steps": 8}
        policy = DiffusionUnetLowdimPolicy(
            ConditionalUnet1D(**unet),
            kind(**scheduler),
            horizon=8,
            obs_dim=5,
            action_dim=2,
            n_action_steps=6,
            n_obs_steps=2,
            obs_as_global_cond=True,
            **options,
        )
        normaliser = LinearNormalizer()
        normaliser.fit({"obs": 3 * torch.randn(50, 5) + 1, "action": 2 * torch.rand(50, 2)})
        policy.set_normalizer(normaliser)

        workspace = Workspace(config, output_dir=".")
        workspace.global_step, workspace.epoch = 3, 1
        workspace.model, workspace.ema_model = policy, copy.deepcopy(policy)
        for parameter in workspace.model.parameters():
            parameter.data.add_(0.1)
        workspace.optimizer = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters())
        folder = FIXTURES / name
        folder.mkdir(exist_ok=True)
        workspace.save_checkpoint(folder / "latest.ckpt", use_thread=False)

        policy = workspace.ema_model.eval()
        scheduler.pop("variance_type", None)
        policy.noise_scheduler = DDIMScheduler(**scheduler)
        noise, observation = torch.randn(3, 8, 2), 3 * torch.randn(3, 2, 5) + 1
        with mock.patch("torch.randn", lambda *args, noise=noise, **kwargs: noise.clone()), torch.no_grad():
            chunk = policy.predict_action({"obs": observation})["action"]
        save_file({"obs": observation, "noise": noise, "chunk": chunk.contiguous()}, folder / "case.safetensors")
        print(name, tuple(chunk.shape), float(chunk.abs().max()))


if __name__ == "__main__":
    main()
