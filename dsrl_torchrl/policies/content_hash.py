"""What a base policy computes, as one hash: the key under which anything derived from it may be kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dsrl_torchrl.errors import UserError

if TYPE_CHECKING:  # BasePolicy.content_hash() calls policy_hash
    from dsrl_torchrl.policies.base_policy import BasePolicy


def policy_hash(policy: BasePolicy) -> str:
    """Hash of a base policy's class, entries, horizons, config and state dict: 64 hex digits, the same on every device.

    Works for any subclass. One whose output depends on more than its state dict, such as the number of sampler steps,
    tells so by a ``config`` property of plain JSON values, as
    :class:`~dsrl_torchrl.policies.generative.GenerativePolicy` does.

    Raises:
        UserError: a ``config`` that is not JSON.
    """
    facts = {
        "class": f"{type(policy).__module__}.{type(policy).__qualname__}",
        "in_keys": policy.in_keys,
        "obs_horizon": policy.obs_horizon,
        "chunk": [policy.pred_horizon, policy.action_dim, policy.first_action],
        "noise": [policy.noise_horizon, policy.noise_dim],
        "config": getattr(policy, "config", None),
        "state": tensors_hash(policy.state_dict()),
    }
    try:
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    except TypeError as error:
        raise UserError(
            f"{type(policy).__name__} cannot be hashed: its config should hold JSON values ({error}); change it, or "
            "override content_hash()"
        ) from None


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and values, bit for bit; independent of order, device and memory layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
