"""The macro transition: one TensorDict schema for offline and online data."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from tensordict import TensorDict, TensorDictBase

from dsrl_torchrl.errors import CheckpointError, NonFiniteError
from dsrl_torchrl.policies.storage import write_atomically

#: Entries of a stored macro transition; shapes are those of
#: :class:`~dsrl_torchrl.latent_env.macro_step.MacroStep`, for a flat batch ``[n]``.
MACRO_TRANSITION_KEYS = (
    "observation",  # s                             [n, obs]
    "action",  # w                                  [n, latent_dim]; absent in offline data
    ("next", "observation"),  # s'                  [n, obs]
    ("next", "reward"),  # R = Σ_{j<k} γ^j r_j      [n, 1]
    ("next", "macro_steps"),  # k                   [n, 1] int64
    ("next", "executed_chunk"),  #                  [n, act_horizon, action_dim]
    ("next", "terminated"),
    ("next", "truncated"),
    ("next", "done"),
    ("next", "success"),
)


def to_macro_transitions(batch: TensorDictBase) -> TensorDictBase:
    """Picks the schema out of a collector's batch ``[*B, T]`` and flattens it to ``[n]``.

    Entries at the root that hold the *previous* step's chunk and k are left behind.
    """
    return batch.select(*MACRO_TRANSITION_KEYS, strict=False).reshape(-1)


def check_finite(transitions: TensorDictBase, step: int) -> None:
    """Raises :class:`NonFiniteError` naming the first non-finite entry and the env step it came from."""
    # What a step wrote comes first: a NaN is born there, and the next step's root only repeats it.
    for key in (("next", "observation"), ("next", "reward"), ("next", "executed_chunk"), "action", "observation"):
        value = transitions.get(key, None)
        if value is not None and not torch.isfinite(value).all():
            name = key if isinstance(key, str) else ".".join(key)
            raise NonFiniteError(name, step)


def save_transitions(transitions: TensorDictBase, path: Path) -> None:
    """Writes macro transitions ``[n]`` as safetensors, atomically."""
    flat = transitions.flatten_keys(".")
    write_atomically(path, safetensors.torch.save({str(key): value.contiguous() for key, value in flat.items()}))


def load_transitions(path: Path) -> TensorDictBase:
    """Reads what :func:`save_transitions` wrote, ``[n]``.

    Raises:
        CheckpointError: the file is missing, truncated or foreign.
    """
    try:
        flat = safetensors.torch.load(path.read_bytes())
        return TensorDict(flat, [len(flat["observation"])]).unflatten_keys(".")
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold macro transitions: {str(error).splitlines()[0]}") from None
