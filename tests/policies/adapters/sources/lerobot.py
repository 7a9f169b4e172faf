"""Fixtures of LeRobot's DiffusionPolicy, made with LeRobot 0.6.1 (Python 3.12, `pip install 'lerobot[diffusion]'`).

python -m tests.policies.adapters.sources.lerobot
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.policies.adapters.portable_weights import fill

FIXTURES = Path(__file__).parents[1] / "fixtures"
UNET = {"down_dims": (8, 16), "kernel_size": 3, "n_groups": 4, "diffusion_step_embed_dim": 8}
STEPS = 8
CASES = {
    "lerobot_states": {
        "inputs": {"observation.state": (3,), "observation.environment_state": (4,)},
        "options": {"use_film_scale_modulation": False, "prediction_type": "sample", "beta_schedule": "linear"},
        "modes": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "MEAN_STD", "ACTION": "MIN_MAX"},
    },
    "lerobot_shared_encoder": {
        "inputs": {"observation.images.b": (3, 48, 64), "observation.state": (3,), "observation.images.a": (3, 48, 64)},
        "options": {
            "use_separate_rgb_encoder_per_camera": False,
            "use_group_norm": True,
            "crop_shape": (40, 57),
            "spatial_softmax_num_keypoints": 4,
            "clip_sample_range": 2.0,
        },
        "modes": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MEAN_STD"},
    },
    "lerobot_own_encoders": {
        "inputs": {"observation.images.a": (3, 48, 64), "observation.state": (3,), "observation.images.b": (3, 48, 64)},
        "options": {"resize_shape": (40, 40), "crop_ratio": 0.9, "spatial_softmax_num_keypoints": 4},
        "modes": {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"},
    },
}


def main() -> None:
    """Writes a checkpoint and the chunk that LeRobot decodes for each case."""
    from diffusers import DDIMScheduler
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.factory import make_pre_post_processors

    for name, case in CASES.items():
        torch.manual_seed(0)
        kinds = {3: FeatureType.VISUAL, 1: FeatureType.STATE}
        inputs = {key: PolicyFeature(kinds[len(shape)], shape) for key, shape in case["inputs"].items()}
        if "observation.environment_state" in inputs:
            inputs["observation.environment_state"].type = FeatureType.ENV
        config = DiffusionConfig(
            n_obs_steps=2,
            horizon=8,
            n_action_steps=7,
            input_features=inputs,
            output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
            normalization_mapping={key: NormalizationMode(mode) for key, mode in case["modes"].items()},
            pretrained_backbone_weights=None,
            device="cpu",
            **UNET,
            **case["options"],
        )
        policy = DiffusionPolicy(config).eval()
        large = any(len(shape) == 3 for shape in case["inputs"].values())
        if large:
            policy.load_state_dict(fill(policy.state_dict(), keep=("pos_grid",)))
        statistics = {key: _statistics(shape) for key, shape in (case["inputs"] | {"action": (2,)}).items()}
        before, after = make_pre_post_processors(config, dataset_stats=statistics)

        folder = FIXTURES / name
        folder.mkdir(exist_ok=True)
        policy.save_pretrained(folder)
        before.save_pretrained(folder)
        after.save_pretrained(folder)
        if large:  # the file is made again by the test
            (folder / "model.safetensors").unlink()
            state = policy.state_dict()
            (folder / "shapes.json").write_text(json.dumps({key: list(t.shape) for key, t in state.items()}))
            save_file(
                {key: t.clone() for key, t in state.items() if key.endswith(("pos_grid", "num_batches_tracked"))},
                folder / "kept.safetensors",
            )

        options = dict(policy.diffusion.noise_scheduler.config)
        for key in ("variance_type", "rescale_betas_zero_snr"):
            options.pop(key, None)
        policy.diffusion.noise_scheduler = DDIMScheduler.from_config(options)
        policy.diffusion.num_inference_steps = STEPS
        entries = {
            key: torch.randint(0, 256, (3, 2, *shape), dtype=torch.uint8)
            if len(shape) == 3
            else torch.randn(3, 2, *shape)
            for key, shape in case["inputs"].items()
        }
        noise = torch.randn(3, 8, 2)
        raw = {key: e.float() / 255 if e.dtype == torch.uint8 else e for key, e in entries.items()}
        policy.reset()
        chunk = after(policy.predict_action_chunk(dict(before(raw)), noise=noise))
        save_file({**entries, "noise": noise, "chunk": chunk.contiguous()}, folder / "case.safetensors")
        print(name, tuple(chunk.shape), float(chunk.abs().max()))


def _statistics(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    size = (shape[0], 1, 1) if len(shape) == 3 else shape
    mean, std = 0.3 * torch.rand(size), 0.5 + torch.rand(size)
    near = {"min": mean - 2 * std, "max": mean + 2 * std, "q01": mean - 1.5 * std, "q99": mean + 1.5 * std}
    return {"mean": mean, "std": std, **near}


if __name__ == "__main__":
    main()
