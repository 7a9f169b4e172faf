"""LeRobot's ``DiffusionPolicy``: a folder of ``config.json`` and ``model.safetensors``, states and images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.errors import UserError, positive_int
from dsrl_torchrl.policies.adapters.conditional_unet1d import ConditionalUnet1D, UnetSizes
from dsrl_torchrl.policies.adapters.ddim import DDIM, betas, clip_bound, deterministic_steps
from dsrl_torchrl.policies.adapters.foreign_diffusion import ForeignDiffusionPolicy, named_entries
from dsrl_torchrl.policies.adapters.foreign_files import (
    filled,
    one_line_errors,
    read_json,
    renamed,
    tensors_below,
)
from dsrl_torchrl.policies.adapters.history_encoder import Image, State
from dsrl_torchrl.policies.adapters.lerobot_statistics import Statistics, normalisation, of_feature, read_statistics
from dsrl_torchrl.policies.adapters.resnet import RgbEncoder
from dsrl_torchrl.tensor_files import load_tensors

STATE, ENVIRONMENT, ACTION = "observation.state", "observation.environment_state", "action"
#: ``DiffusionConfig``'s defaults, for what an older ``config.json`` does not say.
DEFAULTS: dict[str, Any] = {
    "resize_shape": None,
    "crop_shape": None,
    "use_separate_rgb_encoder_per_camera": False,
    "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
}


@one_line_errors
def load_lerobot_diffusion(
    path: str | os.PathLike[str],
    entries: dict[str, NestedKey] | None = None,
    sampler_steps: int | None = None,
    control_mode: str = "",
) -> ForeignDiffusionPolicy:
    """A checkpoint of LeRobot's ``DiffusionPolicy`` (0.1 to 0.6) as a frozen base policy, without LeRobot.

    Its DDPM is replaced by DDIM with η = 0, and a warning says so; a DDIM keeps its steps. The first action that is
    executed is ``n_obs_steps - 1``. Images are resized and cropped to their centre as at LeRobot's evaluation.

    Args:
        path: the folder of ``config.json`` and ``model.safetensors`` (LeRobot's ``pretrained_model``).
        entries: the env's entry for each input feature, e.g. ``{observation.state: observation, observation.image:
            pixels}``.
        sampler_steps: DDIM steps; default: the checkpoint's if it samples by DDIM, 10 otherwise.
        control_mode: how the robot reads an action; a task of another is then refused.

    Raises:
        UserError: a missing, damaged or foreign file, another policy than diffusion, entries that do not fit, or a
            ResNet deeper than 34 layers.
    """
    folder = Path(path).expanduser()
    config = _Config(read_json(folder / "config.json"), folder)
    weights = folder / "model.safetensors"
    tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in load_tensors(weights).items()}
    statistics, modes = read_statistics(folder, tensors)
    modes = config["normalization_mapping"] | modes

    unet = renamed(
        tensors_below(tensors, "diffusion.unet."),
        (r"\.conv1\.", ".blocks.0."),
        (r"\.conv2\.", ".blocks.1."),
        (r"^(down|up)_modules\.(\d+)\.2\.", r"\1_modules.\2.2.conv."),
    )
    with torch.device("meta"):
        network = ConditionalUnet1D(UnetSizes.of(unet, str(weights)), groups=config["n_groups"])
    network = filled(network, unet, weights)
    network.check_horizon(config["horizon"])

    obs_horizon = positive_int("n_obs_steps", config["n_obs_steps"])
    features = _features(config, tensors, statistics, modes, weights)
    names = named_entries(entries, list(features), str(folder))
    scheduler, train_steps = config["noise_scheduler_type"], config["num_train_timesteps"]
    own = config.values.get("num_inference_steps") or train_steps
    sampler = DDIM(
        betas(config["beta_schedule"], train_steps, config["beta_start"], config["beta_end"]),
        deterministic_steps(scheduler, own, train_steps, sampler_steps),
        prediction=config["prediction_type"],
        clip=clip_bound(config["clip_sample"], config["clip_sample_range"]),
    )
    return ForeignDiffusionPolicy(
        {names[name]: feature for name, feature in features.items()},
        network,
        sampler,
        normalisation(ACTION, modes.get("ACTION", "IDENTITY"), statistics, network.sizes.action_dim),
        pred_horizon=config["horizon"],
        obs_horizon=obs_horizon,
        first_action=obs_horizon - 1,
        control_mode=control_mode,
    ).freeze()


class _Config:
    """``config.json``, whose missing values are one line."""

    def __init__(self, values: Mapping[str, Any], folder: Path) -> None:
        self.values, self.folder = values, folder
        if values.get("type", "diffusion") != "diffusion":
            raise UserError(f"{folder} should hold LeRobot's policy of type diffusion, it holds {values['type']!r}")

    def __getitem__(self, name: str) -> Any:
        value = self.values.get(name, DEFAULTS.get(name))
        if value is None and name not in DEFAULTS:
            raise UserError(f"{self.folder / 'config.json'} should have {name}: is it LeRobot's diffusion policy?")
        return value

    def inputs(self, kind: str) -> dict[str, list[int]]:
        """Shape of each input feature of a type, in the order of the configuration."""
        return {name: f["shape"] for name, f in self["input_features"].items() if f["type"] == kind}


def _features(
    config: _Config, tensors: Mapping[str, Tensor], statistics: Statistics, modes: Mapping[str, str], weights: Path
) -> dict[str, State | Image]:
    """In the order in which LeRobot puts them together: state, images, environment state."""

    def state(name: str, kind: str, shape: list[int]) -> State:
        mine = of_feature(name, statistics)
        moments = (mine["mean"], mine["std"].clamp_min(1e-6)) if mine.keys() >= {"mean", "std"} else None
        return State(normalisation(name, modes.get(kind, "IDENTITY"), statistics, *shape), moments)

    found: dict[str, State | Image] = {}
    states = config.inputs("STATE")
    if STATE not in states:
        raise UserError(f"{weights.parent} should read {STATE}, it reads {', '.join(config['input_features'])}")
    found[STATE] = state(STATE, "STATE", states[STATE])
    images = config.inputs("VISUAL")
    separate = config["use_separate_rgb_encoder_per_camera"]
    shared = None
    for i, (name, shape) in enumerate(images.items()):
        if shared is None or separate:
            prefix = f"diffusion.rgb_encoder.{i}." if separate else "diffusion.rgb_encoder."
            shared = _rgb_encoder(config, shape, tensors_below(tensors, prefix), weights)
        scale = normalisation(name, modes.get("VISUAL", "IDENTITY"), statistics, shape[0], 1, 1)
        found[name] = Image(scale, shared, shared.out.out_features, (shape[1], shape[2]))
    for name, shape in config.inputs("ENV").items():
        found[name] = state(name, "ENV", shape)
    return found


def _rgb_encoder(config: _Config, shape: list[int], tensors: Mapping[str, Tensor], weights: Path) -> RgbEncoder:
    channels, height, width = shape
    resize, crop = config["resize_shape"], config["crop_shape"]
    with torch.device("meta"):
        encoder = RgbEncoder(
            (channels, height, width),
            config["vision_backbone"],
            config["use_group_norm"],
            config["spatial_softmax_num_keypoints"],
            None if resize is None else tuple(resize),
            None if crop is None else tuple(crop),
        )
    return filled(encoder, tensors, weights)
