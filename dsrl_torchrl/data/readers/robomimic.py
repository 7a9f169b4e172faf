"""Reading robomimic's and LIBERO's demonstrations (one HDF5 file)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey

from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.readers.episode_checks import check_finite, check_same_sizes, check_sizes
from dsrl_torchrl.data.readers.h5_values import JOIN, NUMBERS, open_h5, read_values, refuse_links, to_float
from dsrl_torchrl.errors import UserError

#: The group of the episodes.
EPISODES = "data"


def read_robomimic(
    path: str | Path,
    *,
    entries: Mapping[NestedKey, str],
    action_dim: int | None = None,
    shapes: Mapping[NestedKey, Sequence[int]] | None = None,
) -> list[Episode]:
    """Reads the successful episodes of a file in robomimic's format, which is LIBERO's, too.

    The format: ``data/demo_<i>/{actions,obs/<name>,rewards,dones}`` with ``T`` of each. An episode whose rewards are
    all 0 or 1 is successful where they are 1, and left out if they never are; of one without such rewards the last step
    is taken for the success. There is no observation after the last action: the last one stands for it, which nothing
    learns from, since no value is bootstrapped behind a success.

    Args:
        path: the ``.hdf5``.
        entries: entry name -> data set inside ``demo_<i>``, such as ``{"main_images": "obs/agentview_rgb"}``, or
            several vectors that are joined: ``{"observation": "obs/ee_states+obs/gripper_states"}``. Vectors ``[T, d]``
            become float32; images ``[T, H, W, C]`` stay uint8 and become ``[T, C, H, W]``, neither turned nor flipped.
        action_dim: the action size that must match; ``None`` takes any.
        shapes: entry name -> the shape of one observation that must match; those left out may have any.

    Returns:
        At least one episode, all with the same entries and sizes.

    Raises:
        UserError: the file is missing, truncated, of another format or size, or without the entries.
        NonFiniteError: NaN or infinity, with the quantity, the episode and the step.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"demonstrations not found: {path}")
    episodes: list[Episode] = []
    with open_h5(path, "robomimic or LIBERO") as file:
        names = _episode_names(file, path)
        for name in names:
            where, group = f"{name} of {path}", file[EPISODES][name]
            datasets = [part for dataset in entries.values() for part in dataset.split(JOIN)]
            refuse_links(file, group, ("actions", "rewards", *datasets), where)
            episode = _read_episode(group, where, entries)
            if episode is None:
                continue
            check_sizes(episode, action_dim, shapes or {}, where)
            if episodes:
                check_same_sizes(episode, episodes[0], where)
            episodes.append(episode)
    if not episodes:
        raise UserError(f"{path} has no successful episode among {len(names)}")
    return episodes


def _episode_names(file: h5py.File, path: Path) -> list[str]:
    """In the order of their numbers: HDF5 has demo_10 before demo_2."""
    group = file.get(EPISODES)
    numbers = [re.fullmatch(r"demo_(\d+)", name) for name in group] if isinstance(group, h5py.Group) else []
    found = sorted((int(match[1]), match[0]) for match in numbers if match)
    if not found:
        raise UserError(f"{path} has no episodes data/demo_<i>: it is not a robomimic or LIBERO file")
    return [name for _, name in found]


def _read_episode(group: h5py.Group, where: str, entries: Mapping[NestedKey, str]) -> Episode | None:
    actions = group["actions"]
    if not isinstance(actions, h5py.Dataset) or actions.ndim != 2 or not len(actions):
        raise UserError(f"{where} has no flat actions [T, action_dim]")
    action = to_float(read_values(actions, NUMBERS, f"actions in {where}"))
    success = _success(group, len(action), where)
    if success is None:
        return None
    observations = TensorDict({}, [len(action) + 1])
    for key, datasets in entries.items():
        value = torch.cat([_read_entry(group, name, len(action), where) for name in _parts(group, datasets, where)], -1)
        observations.set(key, torch.cat([value, value[-1:]]))
    check_finite(observations, action, where)
    return Episode(observations, action, success, success.clone(), torch.zeros_like(success))


def _success(group: h5py.Group, length: int, where: str) -> torch.Tensor | None:
    """``[T]`` bool; ``None`` for an episode that failed."""
    if "rewards" in group:
        rewards = read_values(group["rewards"], NUMBERS, f"rewards in {where}").reshape(-1)
        if len(rewards) != length:
            raise UserError(f"{where} has {len(rewards)} rewards for {length} actions")
        if not np.isfinite(rewards).all():
            raise UserError(f"{where} has rewards that are NaN or infinite")
        if np.isin(rewards, (0, 1)).all():
            return torch.from_numpy(rewards == 1) if rewards.any() else None
    return torch.arange(length) == length - 1


def _parts(group: h5py.Group, datasets: str, where: str) -> list[str]:
    parts = datasets.split(JOIN)
    if len(parts) > 1 and any(getattr(group.get(part), "ndim", 2) != 2 for part in parts):
        raise UserError(f"{datasets!r} joins data sets of {where} that are not all vectors [T, d]")
    return parts


def _read_entry(group: h5py.Group, dataset: str, length: int, where: str) -> torch.Tensor:
    """Vectors ``[T, d]`` float32 or images ``[T, C, H, W]`` uint8."""
    values = group.get(dataset)
    if isinstance(values, h5py.Dataset) and len(values.shape) in (2, 4) and len(values) != length:
        raise UserError(f"{where} has {len(values)} of {dataset} for {length} actions, expected as many")
    if isinstance(values, h5py.Dataset) and values.ndim == 2:
        return to_float(read_values(values, NUMBERS, f"{dataset} in {where}"))
    if isinstance(values, h5py.Dataset) and values.ndim == 4 and values.dtype == np.uint8:
        return torch.from_numpy(read_values(values, NUMBERS, f"{dataset} in {where}")).permute(0, 3, 1, 2).contiguous()
    present: list[str] = []
    group.visititems(lambda name, item: present.append(name) if isinstance(item, h5py.Dataset) else None)
    raise UserError(
        f"{where} has no vectors [T, d] or uint8 images [T, H, W, C] in {dataset!r}; "
        f"its data sets are {', '.join(present)}: name one in task.demonstrations.entries"
    )
