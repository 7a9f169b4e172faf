"""Diffusion Policy's own code (Chi et al., RSS 2023; real-stanford/diffusion_policy): its low-dimensional U-Nets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.adapters.conditional_unet1d import ConditionalUnet1D, UnetSizes
from dsrl_torchrl.policies.adapters.ddim import BETA_END, BETA_START, DDIM, betas, clip_bound, deterministic_steps
from dsrl_torchrl.policies.adapters.foreign_diffusion import ForeignDiffusionPolicy
from dsrl_torchrl.policies.adapters.foreign_files import (
    Inert,
    filled,
    one_line_errors,
    part,
    read_torch_file,
    tensors_below,
)
from dsrl_torchrl.policies.adapters.history_encoder import Affine, State


@one_line_errors
def load_stanford_diffusion(
    path: str | os.PathLike[str],
    in_key: NestedKey = "observation",
    sampler_steps: int | None = None,
    weights: Literal["ema_model", "model"] = "ema_model",
) -> ForeignDiffusionPolicy:
    """A ``.ckpt`` of real-stanford/diffusion_policy, U-Net over a low-dimensional observation, as a frozen base policy.

    The file is a pickle by dill that names classes of its training: they stay inert. A DDPM is replaced by DDIM with
    η = 0, and a warning says so; a DDIM keeps its steps. With ``oa_step_convention`` the first action that is executed
    is ``n_obs_steps - 1``, without ``n_obs_steps``. Policies that read images, and transformers, are refused.

    Args:
        path: ``checkpoints/<name>.ckpt``.
        in_key: the env's entry, laid out as its ``obs``.
        sampler_steps: DDIM steps; default: the checkpoint's if it samples by DDIM, 10 otherwise.
        weights: the moving average, which its evaluation uses, or the last weights.

    Raises:
        UserError: a missing, damaged or foreign file, or a policy of another kind.
    """
    path = Path(path).expanduser()
    content = read_torch_file(path)
    state = part(part(content, "state_dicts", path), weights, path)
    config = _Config(content.get("cfg"), path)
    if any(name.startswith("obs_encoder.") for name in state):
        raise UserError(
            f"{path} reads images: of real-stanford's policies those over low-dimensional states are read here"
        )
    unet = tensors_below(state, "model.")
    sizes = UnetSizes.of(unet, str(path))
    if not config.get("policy.obs_as_global_cond", False):
        raise UserError(
            f"{path} was trained with obs_as_global_cond=false, another way to condition: it is not read here"
        )
    with torch.device("meta"):
        network = ConditionalUnet1D(sizes, groups=config.get("policy.model.n_groups", 8))
    network = filled(network, unet, path)

    obs_horizon = config.get("policy.n_obs_steps")
    only_executed = config.get("policy.pred_action_steps_only", False)
    pred_horizon = config.get("policy.n_action_steps" if only_executed else "policy.horizon")
    first_action = obs_horizon - (1 if config.get("policy.oa_step_convention", False) else 0)
    network.check_horizon(pred_horizon)
    observation, action = (_normaliser(state, key, path) for key in ("obs", "action"))
    if observation[0].shift.numel() * obs_horizon != sizes.condition_dim:
        raise UserError(
            f"{path}: a U-Net of {sizes.condition_dim} observed numbers does not fit {obs_horizon} steps of "
            f"{observation[0].shift.numel()}"
        )
    scheduler = {name: config.get(f"policy.noise_scheduler.{name}", default) for name, default in _SCHEDULER.items()}
    for name, default in _NOT_READ.items():
        if (value := config.get(f"policy.noise_scheduler.{name}", default)) != default:
            raise UserError(f"{path}: its noise scheduler has {name}={value}, which is not read here")
    train_steps, kind = scheduler["num_train_timesteps"], _class(scheduler["_target_"])
    own = config.get("policy.num_inference_steps", None) or train_steps
    steps = deterministic_steps(kind, own, train_steps, sampler_steps)
    sampler = DDIM(
        betas(scheduler["beta_schedule"], train_steps, scheduler["beta_start"], scheduler["beta_end"]),
        steps,
        prediction=scheduler["prediction_type"],
        clip=clip_bound(scheduler["clip_sample"], scheduler["clip_sample_range"]),
        offset=scheduler["steps_offset"],
        last_alpha_bar_is_one=scheduler["set_alpha_to_one"],
    )
    return ForeignDiffusionPolicy(
        {in_key: State(*observation)},
        network,
        sampler,
        action[0],
        pred_horizon=pred_horizon,
        obs_horizon=obs_horizon,
        first_action=0 if only_executed else first_action,
    ).freeze()


#: Of the scheduler, with diffusers' defaults.
_SCHEDULER = {
    "_target_": "",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "steps_offset": 0,
    "set_alpha_to_one": True,
}
#: Which would make another sampler; off by default.
_NOT_READ = {
    "timestep_spacing": "leading",
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
}


def _class(target: str) -> str:
    return target.rsplit(".", 1)[-1].removesuffix("Scheduler")


def _normaliser(state: Mapping[str, Any], key: str, path: Path) -> tuple[Affine, tuple[Tensor, Tensor] | None]:
    """Its ``x * scale + offset``, and mean and standard deviation of the data."""
    found = tensors_below(state, f"normalizer.params_dict.{key}.")
    if not found.keys() >= {"scale", "offset"}:
        raise UserError(f"{path} has no normalizer for {key!r}: was it saved before the training?")
    scale, offset = found["scale"], found["offset"]
    moments = [found.get(f"input_stats.{name}") for name in ("mean", "std")]
    affine = Affine(torch.zeros_like(scale), 1 / scale, offset)
    mean, std = moments
    if mean is None or std is None:
        return affine, None
    return affine, (mean, torch.where(std > 0, std, torch.ones_like(std)))


class _Config:
    """The OmegaConf configuration of an inert pickle: values by dotted names, ``${other.name}`` followed."""

    def __init__(self, config: Any, path: Path) -> None:
        self.values, self.path = _plain(config), path

    def get(self, name: str, *default: Any) -> Any:
        value: Any = self.values
        for step in name.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if isinstance(value, str) and (reference := re.fullmatch(r"\$\{([\w.]+)\}", value)):
            return self.get(reference[1], *default)
        if value is None and default:
            return default[0]
        if value is None or (isinstance(value, str) and "${" in value):
            raise UserError(f"{self.path}: its configuration should have {name}, got {value!r}")
        return value


def _plain(value: Any) -> Any:
    """What OmegaConf's pickled nodes hold."""
    if isinstance(value, Inert) and isinstance(value.state, dict):
        return _plain(value.state.get("_content", value.state.get("_val")))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
