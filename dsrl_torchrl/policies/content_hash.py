"""What a base policy computes, as one hash: the key under which anything derived from it may be kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from dsrl_torchrl.policies.base_policy import BasePolicy


def policy_hash(policy: BasePolicy) -> str:
    """Hash of a base policy's class, sizes, config and state dict: 64 hex digits, the same on every device.

    Works for any subclass. One whose output depends on more than its state dict, such as the number of sampler steps,
    tells so by a ``config`` property of plain JSON values, as
    :class:`~dsrl_torchrl.policies.generative.GenerativePolicy` does.
    """
    facts = {
        "class": f"{type(policy).__module__}.{type(policy).__qualname__}",
        "sizes": [policy.observation_dim, policy.action_dim, policy.pred_horizon, policy.obs_horizon],
        "config": getattr(policy, "config", None),
        "state": tensors_hash(policy.state_dict()),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and values, bit for bit; independent of order, device and memory layout."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
