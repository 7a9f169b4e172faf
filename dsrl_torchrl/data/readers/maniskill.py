"""Reading ManiSkill demonstrations (h5 + json, recorded or downloaded)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey

from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.readers.episode_checks import check_finite, check_same_sizes, check_sizes
from dsrl_torchrl.data.readers.h5_values import FLAGS, JOIN, NUMBERS, open_h5, read_values, refuse_links, to_float
from dsrl_torchrl.data.readers.maniskill_json import RecordedEpisode, read_description
from dsrl_torchrl.errors import UserError

#: Where ManiSkill's ``state`` mode has its one flat observation.
STATE_DATASET = "obs"
FLAT_STATE: Mapping[NestedKey, str] = {"observation": STATE_DATASET}
FLAG_DATASETS = ("success", "terminated", "truncated")


def read_maniskill(
    path: str | Path,
    *,
    entries: Mapping[NestedKey, str] = FLAT_STATE,
    control_mode: str | None = None,
    action_dim: int | None = None,
    shapes: Mapping[NestedKey, Sequence[int]] | None = None,
    max_episodes: int | None = None,
) -> list[Episode]:
    """Reads the successful episodes of a ManiSkill trajectory file.

    The format is that of ManiSkill's ``RecordEpisode``: ``traj_<i>/{obs,actions,success,terminated,truncated}`` in the
    h5, and a json of the same name with each episode's controller and outcome. An episode is successful if the json
    says so, or, where the json does not tell, if its last step is. Everything lies in this one h5: data that it only
    links to are refused, since a hash of the file would not tell when they change.

    Args:
        path: the ``.h5``.
        entries: entry name -> dataset inside ``traj_<i>``, such as
            ``{"observation": "obs/agent/qpos+obs/agent/qvel", "pixels": "obs/sensor_data/base_camera/rgb"}``. Vectors
            ``[T + 1, d]`` and numbers ``[T + 1]`` become float32, ``+`` joins them; images ``[T + 1, H, W, C]`` stay
            uint8 and become ``[T + 1, C, H, W]``.
        control_mode: the controller that the actions must be of; ``None`` takes any.
        action_dim: the action size that must match; ``None`` takes any.
        shapes: entry name -> the shape of one observation that must match; those left out may have any.
        max_episodes: read the first so many successful ones; ``None`` reads all.

    Returns:
        At least one episode, all with the same entries and sizes.

    Raises:
        UserError: a file is missing, truncated, of another controller or size, without the observations or success.
        NonFiniteError: NaN or infinity, with the quantity, the episode and the step.
    """
    path = Path(path)
    described = read_description(path)
    episodes: list[Episode] = []
    with open_h5(path, "ManiSkill trajectory") as file:
        for entry in described.episodes:
            if max_episodes is not None and len(episodes) == max_episodes:
                break
            name = f"traj_{entry.episode_id}"
            if name not in file:
                raise UserError(f"{path} is incomplete: its json lists {name}, which the h5 has not")
            where, group = f"{name} of {path}", file[name]
            datasets = [part for dataset in entries.values() for part in dataset.split(JOIN)]
            refuse_links(file, group, ("actions", *FLAG_DATASETS, *datasets), where)
            if not _is_success(entry, group, where):
                continue
            mode = described.control_mode(entry)
            if control_mode is not None and mode is not None and mode != control_mode:
                hint = _replay_hint(path, control_mode)
                raise UserError(f"{path} holds {mode} actions, the task wants {control_mode}: {hint}")
            episode = _read_episode(group, where, entries, _replay_hint(path, control_mode or mode))
            if entry.elapsed_steps not in (None, len(episode)):
                raise UserError(
                    f"{where} has {len(episode)} steps, its json says {entry.elapsed_steps}: is it the json of "
                    "another file?"
                )
            check_sizes(episode, action_dim, shapes or {}, where)
            if episodes:
                check_same_sizes(episode, episodes[0], where)
            episodes.append(episode)
    if not episodes:
        raise UserError(f"{path} has no successful episode among {len(described.episodes)}")
    return episodes


def _is_success(entry: RecordedEpisode, group: h5py.Group, where: str) -> bool:
    if entry.success is not None:
        return entry.success
    if "success" not in group:
        return False
    flags = read_values(group["success"], FLAGS, f"success in {where}")
    return len(flags) > 0 and bool(flags[-1])


def _read_episode(group: h5py.Group, where: str, entries: Mapping[NestedKey, str], hint: str) -> Episode:
    if not isinstance(group["actions"], h5py.Dataset) or group["actions"].ndim != 2:
        raise UserError(f"{where} has no flat actions [T, action_dim]; only single-robot tasks can be read")
    action = to_float(read_values(group["actions"], NUMBERS, f"actions in {where}"))
    length = action.shape[0]
    observations = TensorDict({}, [length + 1])
    for key, dataset in entries.items():
        parts = [_read_entry(group, part, where, hint) for part in dataset.split(JOIN)]
        if len(parts) > 1 and any(part.ndim != 2 for part in parts):
            raise UserError(f"{dataset!r} joins data sets of {where} that are not all vectors [T + 1, d]")
        for part in parts:
            if length == 0 or part.shape[0] != length + 1:
                raise UserError(
                    f"{where} has {part.shape[0]} observations for {length} actions, expected one more than actions"
                )
        observations.set(key, torch.cat(parts, -1))
    flags = {}
    for name in FLAG_DATASETS:
        flags[name] = torch.zeros(length, dtype=torch.bool)
        if name in group:
            flags[name] = torch.from_numpy(read_values(group[name], FLAGS, f"{name} in {where}").astype(bool))
            if flags[name].shape != (length,):
                raise UserError(f"{where} has {name} of shape {list(flags[name].shape)}, expected [{length}]")
    check_finite(observations, action, where)
    return Episode(observations, action, **flags)


def _read_entry(group: h5py.Group, dataset: str, where: str, hint: str) -> torch.Tensor:
    """Vectors ``[T + 1, d]`` float32 or images ``[T + 1, C, H, W]`` uint8."""
    values = group.get(dataset)
    if isinstance(values, h5py.Dataset) and values.ndim in (1, 2):
        numbers = to_float(read_values(values, NUMBERS, f"{dataset} in {where}"))
        return numbers.reshape(len(numbers), -1)
    if isinstance(values, h5py.Dataset) and values.ndim == 4 and values.dtype == np.uint8:
        return torch.from_numpy(read_values(values, NUMBERS, f"{dataset} in {where}")).permute(0, 3, 1, 2).contiguous()
    if dataset == STATE_DATASET:
        raise UserError(f"{where} has no flat state observations: {hint}")
    present: list[str] = []
    group.visititems(lambda name, item: present.append(name) if isinstance(item, h5py.Dataset) else None)
    raise UserError(
        f"{where} has no vectors [T + 1, d] or uint8 images [T + 1, H, W, C] in {dataset!r}; "
        f"its datasets are {', '.join(present)}"
    )


def _replay_hint(path: Path, control_mode: str | None) -> str:
    target = f" -c {control_mode}" if control_mode else ""
    return (
        "python -m dsrl_torchrl.envs.headless mani_skill.trajectory.replay_trajectory "
        f"--traj-path {shlex.quote(str(path))} -o state{target} --save-traj"
    )
