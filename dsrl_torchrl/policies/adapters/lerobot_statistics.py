"""LeRobot's normalisation: statistics beside the weights (0.4 and later) or among them (before)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.adapters.foreign_files import read_json
from dsrl_torchrl.policies.adapters.history_encoder import Affine
from dsrl_torchrl.tensor_files import load_tensors

EPS = 1e-8  # LeRobot's, against a deviation or a range of zero
#: Bounds of the modes that scale to [-1, 1].
RANGES = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
#: Steps of a processor that compute nothing a base policy would have to.
NEUTRAL = ("rename_observations_processor", "to_batch_processor", "device_processor")

#: Feature -> statistic -> tensor.
Statistics = Mapping[str, Mapping[str, Tensor]]


def read_statistics(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[Statistics, dict[str, str]]:
    """Statistics by feature, and the normalisation mode of each type of feature as far as the processors say it.

    Args:
        folder: the checkpoint.
        tensors: its ``model.safetensors``.

    Raises:
        UserError: no statistics, a damaged file, or a processor that does more than normalise.
    """
    files = [folder / f"policy_{name}processor.json" for name in ("pre", "post")]
    if not files[0].exists():
        return _among_weights(tensors), {}
    found: dict[str, dict[str, Tensor]] = {}
    modes: dict[str, str] = {}
    for file in files:
        for step in read_json(file).get("steps", []):
            name = step.get("registry_name") or step.get("class", "?")
            if name in ("normalizer_processor", "unnormalizer_processor"):
                config, state = step["config"], step["state_file"]
                if config.get("normalize_observation_keys") or config.get("eps", EPS) != EPS:
                    raise UserError(f"{file}: a normaliser of some observations only, or with another eps, is not read")
                if Path(state).name != state:  # what lies elsewhere is not of this checkpoint
                    raise UserError(f"{file} leads to {state!r}, which is outside of the checkpoint")
                modes |= config["norm_map"]
                for key, tensor in load_tensors(folder / state).items():
                    feature, statistic = key.rsplit(".", 1)
                    found.setdefault(feature, {})[statistic] = tensor.float()
            elif name not in NEUTRAL:
                raise UserError(f"{file}: a processor step {name!r} is not read here, only normalisation is")
    return found, modes


def _among_weights(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".buffer_")
        if group in ("normalize_inputs", "unnormalize_outputs"):
            feature, statistic = rest.rsplit(".", 1)
            found.setdefault(feature, {})[statistic] = tensor.float()
    return found


def normalisation(feature: str, mode: str, statistics: Statistics, *size: int) -> Affine:
    """How one feature is normalised.

    Args:
        feature: its name.
        mode: LeRobot's ``NormalizationMode``.
        statistics: of all features; in old checkpoints under names with ``_`` for ``.``.
        size: ``(d,)``, or ``(C, 1, 1)`` for an image.

    Raises:
        UserError: an unknown mode, or statistics that are missing or of another size.
    """
    if mode == "IDENTITY":
        return Affine.identity(*size)
    mine = of_feature(feature, statistics)
    wanted = ("mean", "std") if mode == "MEAN_STD" else RANGES.get(mode)
    if wanted is None:
        raise UserError(
            f"the normalisation of {feature} should be MEAN_STD, IDENTITY or one of {', '.join(RANGES)}, got {mode}"
        )
    if not mine.keys() >= set(wanted):
        raise UserError(
            f"{mode} of {feature} needs its {' and '.join(wanted)}, the checkpoint has {', '.join(mine) or 'none'}"
        )
    try:
        first, second = (mine[name].reshape(size) for name in wanted)
    except RuntimeError:
        got = list(mine[wanted[0]].shape)
        raise UserError(f"the statistics of {feature} should be of the size {list(size)}, got {got}") from None
    if not (first.isfinite().all() and second.isfinite().all()):
        raise UserError(f"the statistics of {feature} hold NaN or infinity: the checkpoint was saved without them")
    if mode == "MEAN_STD":
        return Affine.from_moments(first, second + EPS)
    width = second - first
    return Affine(first, torch.where(width == 0, torch.full_like(width, EPS), width) / 2, -torch.ones_like(first))


def of_feature(feature: str, statistics: Statistics) -> Mapping[str, Any]:
    """The statistics of one feature, none if there are none."""
    return statistics.get(feature) or statistics.get(feature.replace(".", "_")) or {}
