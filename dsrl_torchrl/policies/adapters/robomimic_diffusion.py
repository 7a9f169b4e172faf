"""robomimic's diffusion policy (ARISE-Initiative/robomimic, ``diffusion_policy``) over low-dimensional observations."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.adapters.conditional_unet1d import ConditionalUnet1D, UnetSizes
from dsrl_torchrl.policies.adapters.ddim import DDIM, betas, clip_bound, deterministic_steps
from dsrl_torchrl.policies.adapters.foreign_diffusion import ForeignDiffusionPolicy, named_entries
from dsrl_torchrl.policies.adapters.foreign_files import filled, one_line_errors, part, read_torch_file, tensors_below
from dsrl_torchrl.policies.adapters.history_encoder import Affine, State


@one_line_errors
def load_robomimic_diffusion(
    path: str | os.PathLike[str],
    entries: dict[str, NestedKey] | None = None,
    in_key: NestedKey = "observation",
    sampler_steps: int | None = None,
    weights: Literal["ema", "nets"] = "ema",
) -> ForeignDiffusionPolicy:
    """A ``model_epoch_<n>.pth`` of robomimic's diffusion policy as a frozen base policy.

    A DDPM is replaced by DDIM with η = 0, and a warning says so; a DDIM keeps its steps. The first action that is
    executed is ``observation_horizon - 1``. Policies that read images are refused.

    Args:
        path: the file.
        entries: the env's entry for each observation (``robot0_eef_pos``, ...). Without it all of them stand in one
            entry, ``in_key``, one behind the other in the alphabetical order of their names, the checkpoint's.
        in_key: see ``entries``.
        sampler_steps: DDIM steps; default: the checkpoint's if it samples by DDIM, 10 otherwise.
        weights: the moving average, which its evaluation uses if there is one, or the last weights.

    Raises:
        UserError: a missing, damaged or foreign file, a policy of another kind, or entries that do not fit.
    """
    path = Path(path).expanduser()
    content = read_torch_file(path)
    config, model = _config(content, path), part(content, "model", path)
    state = part(model, weights if model.get(weights) is not None else "nets", path)
    algorithm = config["algo"]
    unet = tensors_below(state, "policy.noise_pred_net.")
    sizes = UnetSizes.of(unet, str(path))
    with torch.device("meta"):  # its U-Net keeps its own default of 8 groups, whatever the configuration says
        network = ConditionalUnet1D(sizes)
    network = filled(network, unet, path)
    horizon = algorithm["horizon"]
    obs_horizon, pred_horizon = horizon["observation_horizon"], horizon["prediction_horizon"]
    network.check_horizon(pred_horizon)

    states = _states(config, content, path)
    read = sum(state.size for state in states.values()) * obs_horizon
    if read != sizes.condition_dim:
        raise UserError(
            f"{path}: a U-Net of {sizes.condition_dim} observed numbers does not fit observations of {read}"
        )
    if entries is None:
        features: dict[NestedKey, State] = {in_key: _joined(list(states.values()))}
    else:
        names = named_entries(entries, list(states), str(path))
        features = {names[name]: state for name, state in states.items()}
    scheduler, kind = _scheduler(algorithm, path)
    train_steps = scheduler["num_train_timesteps"]
    steps = deterministic_steps(kind, scheduler["num_inference_timesteps"], train_steps, sampler_steps)
    sampler = DDIM(
        betas(scheduler["beta_schedule"], train_steps),
        steps,
        prediction=scheduler["prediction_type"],
        clip=clip_bound(scheduler["clip_sample"]),
        offset=scheduler.get("steps_offset", 0),
        last_alpha_bar_is_one=scheduler.get("set_alpha_to_one", True),
    )
    return ForeignDiffusionPolicy(
        features,
        network,
        sampler,
        _action_scale(config, content, sizes.action_dim, path),
        pred_horizon=pred_horizon,
        obs_horizon=obs_horizon,
        first_action=obs_horizon - 1,
    ).freeze()


def _config(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    name = content.get("algo_name")
    if name != "diffusion_policy":
        raise UserError(f"{path} should be of robomimic's diffusion_policy, its algo_name is {name!r}")
    try:
        config = json.loads(content["config"])
        if config["algo"]["unet"]["enabled"] and config["observation"]["modalities"]["obs"]:
            return config
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} has no readable configuration of robomimic (version 0.3 or later)") from None
    raise UserError(f"{path} should hold a U-Net: another network of robomimic is not read here")


def _states(config: Mapping[str, Any], content: Mapping[str, Any], path: Path) -> dict[str, State]:
    """Each observation that the policy reads, in the order of the network."""
    modalities = config["observation"]["modalities"]["obs"]
    if other := [name for kind, names in modalities.items() if kind != "low_dim" for name in names]:
        raise UserError(
            f"{path} reads {other[0]}: of robomimic's policies those over low-dimensional states are read here"
        )
    shapes, statistics = part(content, "shape_metadata", path), content.get("obs_normalization_stats") or {}
    sizes = {name: size for name, size in shapes["all_shapes"].items() if name in modalities["low_dim"]}
    return {name: State(_offset_scale(statistics.get(name), *size, path=path)) for name, size in sizes.items()}


def _joined(states: list[State]) -> State:
    parts = [torch.cat([getattr(s.scale, name) for s in states]) for name in ("shift", "width", "bias")]
    return State(Affine(*parts))


def _offset_scale(statistics: Mapping[str, Any] | None, *size: int, path: Path) -> Affine:
    """``(x - offset) / scale``; ``mean`` and ``std`` in versions before 0.4."""
    if statistics is None:
        return Affine.identity(*size)
    offset, scale = (
        torch.as_tensor(statistics[new] if new in statistics else statistics[old], dtype=torch.float32).reshape(size)
        for new, old in (("offset", "mean"), ("scale", "std"))
    )
    return Affine.from_moments(offset, scale)


def _scheduler(algorithm: Mapping[str, Any], path: Path) -> tuple[Mapping[str, Any], str]:
    for kind in ("ddpm", "ddim"):
        if algorithm[kind]["enabled"]:
            return algorithm[kind], kind.upper()
    raise UserError(f"{path}: its noise scheduler should be DDPM or DDIM, and neither is enabled")


def _action_scale(config: Mapping[str, Any], content: Mapping[str, Any], action_dim: int, path: Path) -> Affine:
    statistics = content.get("action_normalization_stats")
    if not statistics:
        return Affine.identity(action_dim)
    keys = config["train"]["action_keys"]
    for key in keys:
        if config["train"]["action_config"][key].get("format") == "rot_6d":
            raise UserError(f"{path} predicts {key} as a 6D rotation, which becomes three numbers: it is not read here")
    parts: dict[str, Tensor] = {
        name: torch.cat([torch.as_tensor(statistics[key][name], dtype=torch.float32).flatten() for key in keys])
        for name in ("offset", "scale")
    }
    return Affine.from_moments(parts["offset"], parts["scale"])
