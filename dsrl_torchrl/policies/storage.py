"""A base policy on disk: ``model.safetensors`` and ``config.json``; nothing is unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from dsrl_torchrl.errors import CheckpointError, UserError
from dsrl_torchrl.files import unseal
from dsrl_torchrl.policies.diffusion import DiffusionPolicy
from dsrl_torchrl.policies.flow import FlowPolicy
from dsrl_torchrl.policies.generative import GenerativePolicy
from dsrl_torchrl.policies.shortcut import ShortcutPolicy
from dsrl_torchrl.tensor_files import load_described, save_described

FORMAT = "dsrl_torchrl.base_policy"
VERSION = 3
MODEL = "model"
MODEL_FILE = f"{MODEL}.safetensors"
CONFIG_FILE = "config.json"

# What the ``type`` field of a config may name; add your own subclass here before loading it.
POLICY_TYPES: dict[str, type[GenerativePolicy]] = {
    cls.policy_type: cls for cls in (FlowPolicy, DiffusionPolicy, ShortcutPolicy)
}


def save_policy(policy: GenerativePolicy, folder: str | os.PathLike[str]) -> Path:
    """Writes weights, normalisation and constructor arguments; returns the folder.

    Each file appears whole or not at all, the config last, with the weights' SHA-256 and its own: an interrupted save
    over an older checkpoint is noticed on load, and so is any changed byte.

    Raises:
        UserError: a policy of a type that :func:`load_policy` could not rebuild, or NaN or infinity in it.
    """
    policy_type = getattr(policy, "policy_type", "")
    if POLICY_TYPES.get(policy_type) is not type(policy):
        raise UserError(
            f"cannot save a {type(policy).__name__}: only {', '.join(c.__name__ for c in POLICY_TYPES.values())} "
            "can be rebuilt from a checkpoint (keep the original files of a foreign policy)"
        )
    description = {"format": FORMAT, "version": VERSION, "type": policy_type, "arguments": policy.config}
    save_described(Path(folder), {MODEL: policy.state_dict()}, description, CONFIG_FILE)
    return Path(folder)


def load_policy(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> GenerativePolicy:
    """Reads what :func:`save_policy` wrote; the policy comes back frozen, on ``device``.

    Args:
        folder: where the policy was saved, e.g. a run's ``base``.
        device: where it is to be.

    Raises:
        CheckpointError: a file is missing, damaged, foreign or of another version, the type is unknown, or the tensors
            do not fit or are not finite.
    """
    folder = Path(folder).expanduser()
    config = _read_config(folder / CONFIG_FILE)
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are thrown away: they must not move the caller's RNG
            policy = POLICY_TYPES[config["type"]](**config["arguments"])
    except (TypeError, UserError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} holds arguments that do not fit: {error}") from error
    load_described(folder, {MODEL: policy.state_dict()}, {}, CONFIG_FILE)
    return policy.freeze().to(device)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read the base policy's {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not describe a base policy (its 'format' is not {FORMAT!r})")
    if config.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {config.get('version')!r}, this dsrl_torchrl reads {VERSION}: train the policy "
            "again, or load it with the version that wrote it"
        )
    config = unseal(path)
    if config.get("type") not in tuple(POLICY_TYPES):  # a tuple: the value may be unhashable
        raise CheckpointError(f"{path} has type {config.get('type')!r}, allowed are {', '.join(POLICY_TYPES)}")
    if not isinstance(config.get("arguments"), dict):
        raise CheckpointError(f"{path} has no 'arguments'")
    return config
