"""Reading ManiSkill demonstrations (h5 + json, recorded or downloaded)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey

from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.errors import NonFiniteError, UserError

#: Where ManiSkill's ``state`` mode has its one flat observation.
STATE_DATASET = "obs"
FLAT_STATE: Mapping[NestedKey, str] = {"observation": STATE_DATASET}


def read_demonstrations(
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
    says so, or, where the json does not tell, if its last step is.

    Args:
        path: the ``.h5``.
        entries: entry name -> dataset inside ``traj_<i>``, such as
            ``{"observation": "obs/agent/qpos", "pixels": "obs/sensor_data/base_camera/rgb"}``. Vectors ``[T + 1, d]``
            become float32; images ``[T + 1, H, W, C]`` stay uint8 and become ``[T + 1, C, H, W]``.
        control_mode: the controller that the actions must be of; ``None`` takes any.
        action_dim: the action size that must match; ``None`` takes any.
        shapes: entry name -> the shape of one observation that must match; those left out may have any.
        max_episodes: read the first so many successful ones; ``None`` reads all.

    Raises:
        UserError: a file is missing, truncated, of another controller or size, without the observations or success.
        NonFiniteError: NaN or infinity, with the quantity, the episode and the step.
    """
    path = Path(path)
    described = _read_json(path)
    recorded_mode = described.get("env_info", {}).get("env_kwargs", {}).get("control_mode")
    episodes: list[Episode] = []
    try:
        with h5py.File(path, "r") as file:
            for entry in described["episodes"]:
                if max_episodes is not None and len(episodes) == max_episodes:
                    break
                name = f"traj_{entry['episode_id']}"
                if name not in file:
                    raise UserError(f"{path} is incomplete: its json lists {name}, which the h5 has not")
                if not _is_success(entry, file[name]):
                    continue
                mode = entry.get("control_mode", recorded_mode)
                if control_mode is not None and mode is not None and mode != control_mode:
                    hint = _replay_hint(path, control_mode)
                    raise UserError(f"{path} holds {mode} actions, the task wants {control_mode}: {hint}")
                hint = _replay_hint(path, control_mode or mode)
                episodes.append(_read_episode(file[name], f"{name} of {path}", entries, hint))
                _check_sizes(episodes[-1], action_dim, shapes or {}, path)
    except (OSError, KeyError) as error:
        raise UserError(f"{path} is truncated or not a ManiSkill trajectory file ({error})") from error
    if not episodes:
        raise UserError(f"{path} has no successful episode among {len(described['episodes'])}")
    return episodes


def _read_json(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise UserError(
                f"demonstrations not found: {file} (a ManiSkill trajectory is an h5 and a json of the same name)"
            )
    try:
        described = json.loads(beside.read_text())
    except ValueError as error:
        raise UserError(f"{beside} is truncated or not json ({error})") from error
    if not isinstance(described, dict) or not isinstance(described.get("episodes"), list):
        raise UserError(f"{beside} is not the json of a ManiSkill trajectory: it has no list of episodes")
    return described


def _is_success(entry: dict[str, Any], group: h5py.Group) -> bool:
    if "success" in entry:
        return bool(entry["success"])
    return "success" in group and len(group["success"]) > 0 and bool(group["success"][-1])


def _read_episode(group: h5py.Group, where: str, entries: Mapping[NestedKey, str], hint: str) -> Episode:
    if not isinstance(group["actions"], h5py.Dataset) or group["actions"].ndim != 2:
        raise UserError(f"{where} has no flat actions [T, action_dim]; only single-robot tasks can be read")
    action = torch.from_numpy(np.asarray(group["actions"], dtype=np.float32))
    length = action.shape[0]
    observations = TensorDict({}, [length + 1])
    for key, dataset in entries.items():
        value = _read_entry(group, dataset, where, hint)
        if length == 0 or value.shape[0] != length + 1:
            raise UserError(
                f"{where} has {value.shape[0]} observations for {length} actions, expected one more than actions"
            )
        observations.set(key, value)
    flags = {}
    for name in ("success", "terminated", "truncated"):
        flags[name] = torch.zeros(length, dtype=torch.bool)
        if name in group:
            flags[name] = torch.from_numpy(np.asarray(group[name], dtype=bool))
            if flags[name].shape != (length,):
                raise UserError(f"{where} has {name} of shape {list(flags[name].shape)}, expected [{length}]")
    for key, value in [*observations.items(True, True), ("action", action)]:
        bad = ~torch.isfinite(value).flatten(1).all(1)  # (T or T + 1,)
        if bad.any():
            raise NonFiniteError(f"{entry_name(key)} in {where}", int(bad.int().argmax()), unit="step")
    return Episode(observations, action, **flags)


def _read_entry(group: h5py.Group, dataset: str, where: str, hint: str) -> torch.Tensor:
    """Vectors ``[T + 1, d]`` float32 or images ``[T + 1, C, H, W]`` uint8."""
    values = group.get(dataset)
    if isinstance(values, h5py.Dataset) and values.ndim == 2:
        return torch.from_numpy(np.asarray(values, dtype=np.float32))
    if isinstance(values, h5py.Dataset) and values.ndim == 4 and values.dtype == np.uint8:
        return torch.from_numpy(np.asarray(values)).permute(0, 3, 1, 2).contiguous()
    if dataset == STATE_DATASET:
        raise UserError(f"{where} has no flat state observations: {hint}")
    present: list[str] = []
    group.visititems(lambda name, item: present.append(name) if isinstance(item, h5py.Dataset) else None)
    raise UserError(
        f"{where} has no vectors [T + 1, d] or uint8 images [T + 1, H, W, C] in {dataset!r}; "
        f"its datasets are {', '.join(present)}"
    )


def _check_sizes(
    episode: Episode, action_dim: int | None, shapes: Mapping[NestedKey, Sequence[int]], path: Path
) -> None:
    if action_dim is not None and episode.action.shape[-1] != action_dim:
        raise UserError(f"{path} has {episode.action.shape[-1]}-d actions, the task has {action_dim}-d ones")
    for key, shape in shapes.items():
        recorded = list(episode.observations.get(key).shape[1:])
        if recorded != list(shape):
            raise UserError(f"{path} has {entry_name(key)} of shape {recorded}, the task has {list(shape)}")


def _replay_hint(path: Path, control_mode: str | None) -> str:
    target = f" -c {control_mode}" if control_mode else ""
    return f"python -m mani_skill.trajectory.replay_trajectory --traj-path {path} -o state{target} --save-traj"
