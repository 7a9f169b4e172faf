"""Fixtures of robomimic's diffusion policy (commit d309eaec), made with its algorithm and encoder.

PYTHONPATH=.:<its checkout> python -m tests.policies.adapters.sources.robomimic
"""

from __future__ import annotations

import copy
import functools
import sys
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHAPES = OrderedDict(object=[4], robot0_eef_pos=[3], robot0_gripper_qpos=[2])
ACTION, HORIZON, STEPS = 3, 8, 8
CASES = {"robomimic_ddpm": ("ddpm", True), "robomimic_ddim": ("ddim", False)}


def main() -> None:
    """Writes a checkpoint and the chunk that its code decodes for each case."""
    from diffusers import DDIMScheduler  # before the stubs, which it would find
    from diffusers.training_utils import EMAModel  # noqa: F401

    for name in (
        "matplotlib",
        "matplotlib.pyplot",
        "matplotlib.cm",
        "tensorboardX",
        "egl_probe",
        "robosuite",
        "psutil",
    ):
        sys.modules.setdefault(name, mock.MagicMock())
    import robomimic.algo.diffusion_policy as source
    import robomimic.models.diffusion_policy_nets as nets
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.algo import RolloutPolicy, algo_factory
    from robomimic.config import config_factory
    from robomimic.utils.train_utils import save_model

    class Average:  # diffusers 0.11.1's EMAModel, which it needs, had this attribute
        def __init__(self, model: torch.nn.Module, power: float) -> None:
            self.averaged_model = copy.deepcopy(model).requires_grad_(False)

    source.EMAModel = Average
    small = {"diffusion_step_embed_dim": 4, "down_dims": [8, 16], "kernel_size": 3}
    nets.ConditionalUnet1D = functools.partial(nets.ConditionalUnet1D, **small)  # it has no sizes in its configuration

    for name, (kind, scaled) in CASES.items():
        torch.manual_seed(0)
        config = config_factory("diffusion_policy")
        with config.unlocked():
            config.observation.modalities.obs.low_dim = list(SHAPES)[::-1]
            config.algo.horizon.prediction_horizon = HORIZON
            config.algo.horizon.action_horizon = HORIZON - 1
            config.algo.ddpm.enabled, config.algo.ddim.enabled = kind == "ddpm", kind == "ddim"
            config.algo.ddim.num_inference_timesteps = STEPS
            config.algo.ddim.set_alpha_to_one = False
            config.algo.ddim.steps_offset = 1
            config.algo.ema.enabled = scaled
            config.algo.optim_params.policy.num_train_batches = config.algo.optim_params.policy.num_epochs = 1
            config.train.hdf5_normalize_obs = scaled
            if scaled:
                config.train.action_keys = ["position", "gripper"]
                config.train.action_config = {key: {"normalization": "min_max"} for key in config.train.action_keys}
        obs_utils.initialize_obs_utils_with_config(config)
        algorithm = algo_factory("diffusion_policy", config, SHAPES, ACTION, torch.device("cpu"))
        for parameter in algorithm.nets.parameters():
            parameter.data.add_(0.0 if kind == "ddim" else 0.1)
        algorithm.set_eval()

        rng = np.random.default_rng(0)
        observed, acted = (
            _statistics(rng, {key: shape[0] for key, shape in SHAPES.items()}),
            _statistics(rng, {"position": 2, "gripper": 1}),
        )
        folder = FIXTURES / name
        folder.mkdir(exist_ok=True)
        save_model(
            algorithm,
            config,
            env_meta={"env_name": "Can"},
            shape_meta={"ac_dim": ACTION, "all_shapes": SHAPES, "all_obs_keys": list(SHAPES), "use_images": False},
            variable_state={"epoch": np.float64(1)},
            ckpt_path=folder / "model_epoch_1.pth",
            obs_normalization_stats=observed if scaled else None,
            action_normalization_stats=acted if scaled else None,
        )

        # In double precision: the first steps of this schedule amplify what float32 rounds away to more than the test
        # allows, and processors round differently.
        algorithm.nets.double()
        if algorithm.ema is not None:
            algorithm.ema.averaged_model.double()
        rollout = RolloutPolicy(algorithm, observed if scaled else None, acted if scaled else None)
        if kind == "ddpm":
            algorithm.noise_scheduler = DDIMScheduler(
                num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=True, prediction_type="epsilon"
            )
            with config.unlocked():
                config.algo.ddpm.num_inference_timesteps = STEPS
            algorithm.algo_config = config.algo
        entries = {key: torch.randn(3, 2, *shape) for key, shape in SHAPES.items()}
        noise = torch.randn(3, HORIZON, ACTION)
        prepared = rollout._prepare_observation({key: e.numpy() for key, e in entries.items()}, batched_ob=True)
        prepared = {key: entry.double() for key, entry in prepared.items()}
        torch.set_default_dtype(torch.float64)  # for the embedding of the step
        with mock.patch("torch.randn", lambda *args, noise=noise, **kwargs: noise.double()), torch.no_grad():
            chunk = algorithm._get_action_trajectory(prepared).numpy()
        if scaled:
            parts = obs_utils.unnormalize_dict(
                {"position": chunk[..., :2].reshape(-1, 2), "gripper": chunk[..., 2:].reshape(-1, 1)}, acted
            )
            chunk = np.concatenate([parts["position"], parts["gripper"]], -1).reshape(chunk.shape)
        torch.set_default_dtype(torch.float32)
        chunk = torch.from_numpy(np.ascontiguousarray(chunk))
        save_file({**entries, "noise": noise, "chunk": chunk}, folder / "case.safetensors")
        print(name, tuple(chunk.shape), float(chunk.abs().max()))


def _statistics(rng: np.random.Generator, sizes: dict[str, int]) -> dict[str, dict[str, np.ndarray]]:
    return {
        key: {
            "offset": rng.normal(size=(1, size)).astype(np.float32),
            "scale": rng.uniform(0.5, 2, (1, size)).astype(np.float32),
        }
        for key, size in sizes.items()
    }


if __name__ == "__main__":
    main()
