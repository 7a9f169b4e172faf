"""The macro transition: one TensorDict schema for offline and online data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase, unravel_key
from tensordict.utils import NestedKey

from dsrl_torchrl.errors import CheckpointError, NonFiniteError, UserError
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, STEPS_KEY, SUCCESS_KEY
from dsrl_torchrl.tensor_files import load_tensors, save_tensors

#: ``log π(w | s)`` when ``w`` was drawn, ``[n]``: of on-policy agents alone.
LOG_PROB_KEY = "sample_log_prob"
#: What a macro step writes under ``"next"``, beside the observations: shapes are those of
#: :class:`~dsrl_torchrl.latent_env.macro_step.MacroStep`, for a flat batch ``[n]``.
OUTCOME_KEYS = (
    "reward",  # R = Σ_{j<k} γ^j r_j      [n, 1]
    STEPS_KEY,  # k                       [n, 1] int64
    CHUNK_KEY,  #                         [n, act_horizon, action_dim]
    "terminated",
    "truncated",
    "done",
    SUCCESS_KEY,
)


def macro_transition_keys(observation_keys: Sequence[NestedKey]) -> list[NestedKey]:
    """The schema: observations s, noise w (absent in offline data), and under ``"next"`` s' and what came out."""
    following = [unravel_key(("next", key)) for key in (*observation_keys, *OUTCOME_KEYS)]
    return [*(unravel_key(key) for key in observation_keys), "action", *following]


def to_macro_transitions(batch: TensorDictBase, observation_keys: Sequence[NestedKey]) -> TensorDictBase:
    """Picks the schema out of a collector's batch ``[*B, T]`` and flattens it to ``[n]``.

    Entries at the root that hold the *previous* step's chunk and k are left behind.

    Args:
        batch: what a collector yields.
        observation_keys: the observations to keep: what policy, actor and critics read.

    Raises:
        UserError: the batch lacks one of the observations.
    """
    for key in observation_keys:
        if batch.get(key, None) is None:
            there = ", ".join(entry_name(name) for name in batch.exclude("next").keys(True, True))
            raise UserError(f"expected an entry {entry_name(key)!r}, the env has {there}")
    return batch.select(*macro_transition_keys(observation_keys), LOG_PROB_KEY, strict=False).reshape(-1)


def check_finite(transitions: TensorDictBase, step: int) -> None:
    """Raises :class:`NonFiniteError` naming the first non-finite entry and the env step it came from.

    Looks at every floating-point entry; uint8 images, counts and flags are always finite.
    """
    # What a step wrote comes first: a NaN is born there, and the next step's root only repeats it.
    entries = sorted(transitions.items(True, True), key=lambda item: item[0][0] != "next")
    for key, value in entries:
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NonFiniteError(entry_name(key), step)


def save_transitions(transitions: TensorDictBase, path: Path) -> None:
    """Writes macro transitions ``[n]`` as safetensors, atomically.

    A tensor's name is its key as a JSON list, such as ``["next", "reward"]``: entry names may hold dots and slashes.
    """
    save_tensors({stored_name(key): value for key, value in transitions.items(True, True)}, path)


def load_transitions(path: Path) -> TensorDictBase:
    """Reads what :func:`save_transitions` wrote, ``[n]``.

    Raises:
        CheckpointError: the file is missing, truncated or foreign, or what it holds cannot have come out of an env.
    """
    stored = load_tensors(path)
    reward = stored.get(stored_name(("next", "reward")))
    try:
        if reward is None:
            raise ValueError("there is no next.reward in it")
        transitions = TensorDict({tuple(json.loads(name)): value for name, value in stored.items()}, [len(reward)])
        _check_schema(transitions)
        check_finite(transitions, 0)
    except NonFiniteError as error:
        raise CheckpointError(f"{path} does not hold macro transitions: {error.quantity} is NaN or infinite") from None
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold macro transitions: {str(error).splitlines()[0]}") from None
    return transitions


def _check_schema(transitions: TensorDictBase) -> None:
    """Raises ``ValueError`` for sizes, dtypes and values of ``[n]`` that no macro step has."""
    outcome, n = transitions["next"], len(transitions)
    for key in OUTCOME_KEYS:
        value = outcome.get(key, None)
        if value is None and key != SUCCESS_KEY:
            raise ValueError(f"there is no next.{key} in it")
        if value is not None and key != CHUNK_KEY and value.shape != (n, 1):
            raise ValueError(f"next.{key} should be [{n}, 1], but is {list(value.shape)}")
    chunk, steps = outcome[CHUNK_KEY], outcome[STEPS_KEY]
    if n == 0 or chunk.ndim != 3 or not (chunk.is_floating_point() and outcome["reward"].is_floating_point()):
        raise ValueError(f"next.{CHUNK_KEY} should be floats [n, act_horizon, action_dim], but is {list(chunk.shape)}")
    if steps.dtype != torch.int64 or not ((steps >= 1) & (steps <= chunk.shape[1])).all():
        raise ValueError(f"next.{STEPS_KEY} should lie in 1..{chunk.shape[1]}")
    flags = [outcome[key] for key in ("terminated", "truncated", "done")]
    if any(flag.dtype != torch.bool for flag in flags) or ((flags[0] | flags[1]) & ~flags[2]).any():
        raise ValueError("next.done should be set where next.terminated or next.truncated is")
    for key, value in transitions.exclude("action", "next").items(True, True):
        following = outcome.get(key, None)
        if following is None or following.shape != value.shape or following.dtype != value.dtype:
            raise ValueError(f"{entry_name(key)} and next.{entry_name(key)} should be alike")


def entry_name(key: NestedKey) -> str:
    """An entry's name as messages have it: ``next.reward``."""
    return key if isinstance(key, str) else ".".join(unravel_key(key))


def stored_name(key: NestedKey) -> str:
    """An entry's name in a file, which :func:`json.loads` takes apart again."""
    return json.dumps([key] if isinstance(key, str) else list(key))
