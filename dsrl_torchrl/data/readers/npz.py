"""Reading episodes from plain NumPy arrays (one npz file), as D4RL's and DPPO's data are kept."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey

from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.readers.episode_checks import check_finite, check_sizes
from dsrl_torchrl.data.readers.h5_values import JOIN, NUMBERS, to_float
from dsrl_torchrl.errors import UserError

#: Arrays that tell where episodes end, of each step: by the task, or by a time limit.
TERMINALS, TIMEOUTS, SUCCESS = "terminals", "timeouts", "success"
#: DPPO's: the length of each episode.
LENGTHS = "traj_lengths"
#: Beside DPPO's data (irom-princeton/dppo, ``script/dataset``): the range that each number was mapped from to [-1, 1].
NORMALISATION = "normalization.npz"
NORMALISED = {"states": ("obs_min", "obs_max"), "actions": ("action_min", "action_max")}
NORMALISATION_EPS = 1e-6  # added to each range there
NORMALISED_TOLERANCE = 1e-3


def read_npz(
    path: str | Path,
    *,
    entries: Mapping[NestedKey, str],
    action_dim: int | None = None,
    shapes: Mapping[NestedKey, Sequence[int]] | None = None,
) -> list[Episode]:
    """Reads the episodes of arrays that hold one step after the other, ``n`` in all.

    The format: ``actions`` ``[n, action_dim]``, an array for each entry, and where episodes end: ``terminals`` and
    ``timeouts`` ``[n]`` (D4RL), or ``traj_lengths`` ``[k]`` (DPPO's ``states``, ``actions``, ``traj_lengths``). What
    follows a step of the array ``x`` is taken from ``next_x`` if there is one; else the last observation of an episode
    stands for what comes after it, which nothing learns from where the episode ends in success. With ``success``
    ``[n]`` only the episodes that have it are read; without, all are. Rewards are not read, pickled objects refused.

    DPPO's scripts map ``states`` and ``actions`` to [-1, 1] and keep the ranges in ``normalization.npz``. Where that
    lies beside a file with ``traj_lengths``, both come back in the env's units.

    Args:
        path: the ``.npz``.
        entries: entry name -> array, such as ``{"observation": "states"}``: vectors ``[n, d]`` and numbers ``[n]``
            become float32, ``+`` joins them; images ``[n, H, W, C]`` stay uint8 and become ``[n, C, H, W]``.
        action_dim: the action size that must match; ``None`` takes any.
        shapes: entry name -> the shape of one observation that must match; those left out may have any.

    Returns:
        At least one episode.

    Raises:
        UserError: the file is missing, damaged or of another format or size, or without the entries.
        NonFiniteError: NaN or infinity, with the quantity, the episode and the step.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"demonstrations not found: {path}")
    observed = [part for name in entries.values() for part in name.split(JOIN)]
    wanted = {"actions", LENGTHS, TERMINALS, TIMEOUTS, SUCCESS, *observed, *(f"next_{name}" for name in observed)}
    arrays, known = _load(path, wanted)
    for name in ("actions", *observed):
        if name not in arrays:
            hint = "" if name == "actions" else "; set task.demonstrations.entries, e.g. entries.observation=states"
            raise UserError(f"{path} has no array {name!r}; it has {known}{hint}")
    if arrays["actions"].ndim != 2:
        raise UserError(f"{path}: actions should be [n, action_dim], is of shape {list(arrays['actions'].shape)}")
    length = len(arrays["actions"])
    for name, values in arrays.items():
        rows = values.shape[:1] == (length,) or name == LENGTHS
        if values.dtype.kind not in NUMBERS or not rows or not length:
            raise UserError(f"{path}: {name} should be {length} rows of numbers, is {values.shape} of {values.dtype}")
        if name in (TERMINALS, TIMEOUTS, SUCCESS):
            if values.size != length or not np.isin(values, (0, 1)).all():
                raise UserError(f"{path}: {name} should be {length} flags, 0 or 1, is {values.shape} of other values")
            arrays[name] = values.reshape(length)  # [n, 1], too: it would make rewards of every step of every other
    for file in npz_files(path)[1:]:
        if LENGTHS in arrays:
            arrays |= _in_units_of_the_env(arrays, file, path)
    ends = _ends(arrays, length, path)
    episodes = []
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        episode = _episode(arrays, slice(start, end), entries, f"episode {number} of {path}")
        if SUCCESS not in arrays or episode.success.any():
            check_sizes(episode, action_dim, shapes or {}, f"episode {number} of {path}")
            episodes.append(episode)
    if not episodes:
        raise UserError(f"{path} has no successful episode among {len(ends)}")
    return episodes


def npz_files(path: Path) -> tuple[Path, ...]:
    """The file, and what says how its numbers were normalised, if that lies beside it."""
    beside = path.with_name(NORMALISATION)
    return (path, beside) if beside.is_file() else (path,)


def _load(path: Path, wanted: Collection[str]) -> tuple[dict[str, np.ndarray], str]:
    """Those of the arrays that are there, and the names of all."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name in wanted}, ", ".join(file.files)
    except (OSError, TypeError, ValueError, zipfile.BadZipFile, EOFError, KeyError, MemoryError) as error:
        raise UserError(f"{path} is truncated or not an npz of plain arrays ({' '.join(str(error).split())})") from None


def _in_units_of_the_env(arrays: Mapping[str, np.ndarray], beside: Path, path: Path) -> dict[str, np.ndarray]:
    """Undoes ``2 (x - min) / (max - min + eps) - 1``."""
    ranges, known = _load(beside, {name for pair in NORMALISED.values() for name in pair})
    undone = {}
    for name, (low, high) in NORMALISED.items():
        if name not in arrays:
            continue
        values = arrays[name].astype(np.float64)
        given = [ranges[key] for key in (low, high) if key in ranges]
        if len(given) < 2 or any(one.shape != values.shape[1:] or one.dtype.kind not in NUMBERS for one in given):
            sizes = f"numbers of the shape {list(values.shape[1:])} of {path.name}'s {name}"
            raise UserError(f"{beside} should have {low} and {high}, {sizes}, it has {known}")
        if not (np.isfinite(given).all() and (given[0] <= given[1]).all()):
            raise UserError(f"{beside}: {low} should be below {high}, and both finite")
        if np.abs(values).max() > 1 + NORMALISED_TOLERANCE:
            raise UserError(
                f"{path}: {name} should be in [-1, 1], as {beside.name} lies beside it, is up to "
                f"{np.abs(values).max():.3g}: if it is not normalised, keep it in a folder of its own"
            )
        undone[name] = (values + 1) / 2 * (ranges[high] - ranges[low] + NORMALISATION_EPS) + ranges[low]
    return undone


def _ends(arrays: Mapping[str, np.ndarray], length: int, path: Path) -> list[int]:
    """One past the last step of each episode."""
    if LENGTHS in arrays:
        ends = np.cumsum(arrays[LENGTHS].astype(np.int64).ravel())
        if not len(ends) or (arrays[LENGTHS] < 1).any() or ends[-1] != length:
            raise UserError(f"{path}: {LENGTHS} should add up to the {length} actions, each at least 1")
        return ends.tolist()
    told = [arrays[name].astype(bool) for name in (TERMINALS, TIMEOUTS) if name in arrays]
    if not told:
        raise UserError(f"{path} does not tell where episodes end: it needs {LENGTHS}, or {TERMINALS} and {TIMEOUTS}")
    ends = (np.flatnonzero(np.any(told, axis=0)) + 1).tolist()
    return ends if ends and ends[-1] == length else [*ends, length]


def _episode(arrays: Mapping[str, np.ndarray], steps: slice, entries: Mapping[NestedKey, str], where: str) -> Episode:
    action = to_float(arrays["actions"][steps])
    observations = TensorDict({}, [len(action) + 1])
    for key, names in entries.items():
        parts = [_read_entry(arrays, name, steps, where) for name in names.split(JOIN)]
        if len(parts) > 1 and any(part.ndim != 2 for part in parts):
            raise UserError(f"{where}: {names!r} joins arrays that are not all vectors [n, d]")
        observations.set(key, torch.cat(parts, -1))
    check_finite(observations, action, where)

    def flags(name: str) -> torch.Tensor:
        given = arrays.get(name)
        return torch.zeros(len(action), dtype=torch.bool) if given is None else torch.from_numpy(given[steps] > 0)

    return Episode(observations, action, flags(SUCCESS), flags(TERMINALS), flags(TIMEOUTS))


def _read_entry(arrays: Mapping[str, np.ndarray], name: str, steps: slice, where: str) -> torch.Tensor:
    """Vectors ``[T + 1, d]`` float32 or images ``[T + 1, C, H, W]`` uint8."""
    values = arrays[name][steps]
    after = arrays.get(f"next_{name}", arrays[name])[steps][-1:]
    if after.shape[1:] != values.shape[1:]:
        raise UserError(f"{where}: next_{name} is of shape {list(after.shape[1:])}, {name} {list(values.shape[1:])}")
    values = np.concatenate([values, after.astype(values.dtype)])
    if values.ndim == 4 and values.dtype == np.uint8:
        return torch.from_numpy(values.transpose(0, 3, 1, 2).copy())
    if values.ndim not in (1, 2):
        raise UserError(f"{where}: {name} should be vectors [n, d] or uint8 images [n, H, W, C]")
    return to_float(values).reshape(len(values), -1)
