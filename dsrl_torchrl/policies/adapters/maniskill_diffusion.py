"""ManiSkill's baseline ``examples/baselines/diffusion_policy``: its ``train.py`` and ``train_rgbd.py``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from dsrl_torchrl.errors import UserError, positive_int
from dsrl_torchrl.policies.adapters.conditional_unet1d import ConditionalUnet1D, UnetSizes
from dsrl_torchrl.policies.adapters.ddim import DDIM, betas, deterministic_steps
from dsrl_torchrl.policies.adapters.foreign_diffusion import ForeignDiffusionPolicy, named_entries
from dsrl_torchrl.policies.adapters.foreign_files import filled, one_line_errors, part, read_torch_file, tensors_below
from dsrl_torchrl.policies.adapters.history_encoder import Affine, Image, State

TRAIN_STEPS = 100  # fixed in its code, as are the schedule and the clipping to [-1, 1]


class PlainConv(nn.Module):
    """The baseline's image encoder: five convolutions, max-pooled to one vector, a linear layer.

    Args:
        channels: of the image.
        features: of the output.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out in ((channels, 16), (16, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.cnn = nn.Sequential(*layers, nn.Conv2d(128, 128, 1), nn.ReLU())
        self.fc = nn.Sequential(nn.Linear(128, features), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        """``[N, C, H, W]`` in [0, 1] -> ``[N, features]``."""
        return self.fc(self.cnn(image).amax((-2, -1)))


@one_line_errors
def load_maniskill_diffusion(
    path: str | os.PathLike[str],
    entries: dict[str, NestedKey] | None = None,
    obs_horizon: int = 2,
    pred_horizon: int = 16,
    sampler_steps: int | None = None,
    n_groups: int = 8,
    weights: Literal["ema_agent", "agent"] = "ema_agent",
    control_mode: str = "",
) -> ForeignDiffusionPolicy:
    """A checkpoint of ManiSkill's diffusion-policy baseline, state or rgb, as a frozen base policy.

    Its DDPM is replaced by DDIM with η = 0, and a warning says so. The first action that is executed is
    ``obs_horizon - 1``. Actions and states are the env's own, unnormalised. A policy that reads depth is refused.

    Args:
        path: ``checkpoints/<tag>.pt``.
        entries: the env's entry for ``state`` and, of a policy that reads images, ``rgb``; ``observation`` and
            ``pixels`` by default.
        obs_horizon: its ``--obs-horizon``, which the file does not hold.
        pred_horizon: its ``--pred-horizon``.
        sampler_steps: DDIM steps, 10 by default.
        n_groups: its ``--n-groups``.
        weights: the moving average, which its evaluation uses, or the last weights.
        control_mode: its ``--control-mode``; a task of another is then refused.

    Raises:
        UserError: a missing, damaged or foreign file, sizes that do not fit, or entries that do not.
    """
    path = Path(path).expanduser()
    content = part(read_torch_file(path), weights, path)
    unet = tensors_below(content, "noise_pred_net.")
    sizes = UnetSizes.of(unet, str(path))
    with torch.device("meta"):
        network = ConditionalUnet1D(sizes, groups=n_groups)
    network = filled(network, unet, path)
    network.check_horizon(pred_horizon)
    features: dict[str, Any] = {}
    if visual := tensors_below(content, "visual_encoder."):
        features["rgb"] = _image(visual, path)
    if sizes.condition_dim % positive_int("obs_horizon", obs_horizon):
        raise UserError(
            f"{path} reads {sizes.condition_dim} numbers, which is no multiple of obs_horizon={obs_horizon}"
        )
    state_dim = sizes.condition_dim // obs_horizon - (features["rgb"].features if visual else 0)
    if state_dim < 1:
        raise UserError(f"{path} reads {sizes.condition_dim} numbers, fewer than images make: obs_horizon is smaller")
    features["state"] = State(Affine.identity(state_dim))
    ours = {"rgb": "pixels", "state": "observation"} | (entries or {})
    names = named_entries(
        {k: v for k, v in ours.items() if k in features or k in (entries or {})}, list(features), str(path)
    )
    steps = deterministic_steps("DDPM", TRAIN_STEPS, TRAIN_STEPS, sampler_steps)
    return ForeignDiffusionPolicy(
        {names[name]: feature for name, feature in features.items()},
        network,
        DDIM(betas("squaredcos_cap_v2", TRAIN_STEPS), steps),
        Affine.identity(sizes.action_dim),
        pred_horizon=pred_horizon,
        obs_horizon=obs_horizon,
        first_action=obs_horizon - 1,
        control_mode=control_mode,
    ).freeze()


def _image(tensors: dict[str, Tensor], path: Path) -> Image:
    try:
        channels, features = tensors["cnn.0.weight"].shape[1], tensors["fc.0.weight"].shape[0]
    except KeyError as error:
        raise UserError(f"{path}: its image encoder is none of ManiSkill's PlainConv ({error} is missing)") from None
    if channels % 3:
        raise UserError(f"{path} reads images of {channels} channels: depth is not read here, train with rgb")
    with torch.device("meta"):
        encoder = PlainConv(channels, features)
    return Image(Affine.identity(channels, 1, 1), filled(encoder, tensors, path), features)
