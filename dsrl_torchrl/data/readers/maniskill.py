"""Reading ManiSkill demonstrations (h5 + json, recorded or downloaded) and cutting them into action chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from tensordict import TensorDict

from dsrl_torchrl.errors import NonFiniteError, UserError


@dataclass(frozen=True)
class Episode:
    """One demonstration of ``T`` steps.

    ``observation[t]`` is what is seen before ``action[t]``; the flags tell how step ``t`` ended.
    """

    observation: torch.Tensor  # (T + 1, obs_dim) float32
    action: torch.Tensor  # (T, action_dim) float32
    success: torch.Tensor  # (T,) bool
    terminated: torch.Tensor  # (T,) bool
    truncated: torch.Tensor  # (T,) bool

    def __len__(self) -> int:
        return self.action.shape[0]


def read_demonstrations(
    path: str | Path,
    *,
    control_mode: str | None = None,
    action_dim: int | None = None,
    observation_dim: int | None = None,
    max_episodes: int | None = None,
) -> list[Episode]:
    """Reads the successful episodes of a ManiSkill trajectory file with flat ``state`` observations.

    The format is that of ManiSkill's ``RecordEpisode``: ``traj_<i>/{obs,actions,success,terminated,truncated}`` in the
    h5, and a json of the same name with each episode's controller and outcome. An episode is successful if the json
    says so, or, where the json does not tell, if its last step is.

    Args:
        path: the ``.h5``.
        control_mode: the controller that the actions must be of; ``None`` takes any.
        action_dim: the action size that must match; ``None`` takes any.
        observation_dim: the observation size that must match; ``None`` takes any.
        max_episodes: read the first so many successful ones; ``None`` reads all.

    Raises:
        UserError: a file is missing, truncated, of another controller or size, without state observations or success.
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
                episodes.append(_read_episode(file[name], f"{name} of {path}", path, control_mode or mode))
                _check_size("action", episodes[-1].action, action_dim, path)
                _check_size("observation", episodes[-1].observation, observation_dim, path)
    except (OSError, KeyError) as error:
        raise UserError(f"{path} is truncated or not a ManiSkill trajectory file ({error})") from error
    if not episodes:
        raise UserError(f"{path} has no successful episode among {len(described['episodes'])}")
    return episodes


def cut_chunks(episodes: Sequence[Episode], obs_horizon: int, pred_horizon: int) -> TensorDict:
    """Cuts every step of every episode into one (observation history, action chunk) pair for behaviour cloning.

    For ``obs_horizon=2, pred_horizon=4`` and an episode of ``T=6`` steps (``o0 .. o6``, ``a0 .. a5``)::

        t = 0   observation  o0 o0      (the first observation is repeated)
                action          a0 a1 a2 a3         valid  1 1 1 1
        t = 1   observation  o0 o1
                action          a1 a2 a3 a4         valid  1 1 1 1
        ...
        t = 4   observation  o3 o4
                action          a4 a5 a5 a5         valid  1 1 0 0   (the last action is repeated, and masked)

    So action ``j`` of the chunk is the one for step ``t + j``, and index 0 is executed from the newest observation. The
    history is laid out like TorchRL's ``CatFrames(N=obs_horizon, dim=-1, padding="same")``: oldest first, in primitive
    steps.

    Args:
        episodes: demonstrations of the same sizes.
        obs_horizon: number of observations in the history.
        pred_horizon: number of actions in a chunk.

    Returns:
        Batch ``[N]``, ``N`` the total number of steps: ``observation`` ``[N, obs_horizon * obs_dim]``,
        ``action`` ``[N, pred_horizon, action_dim]``, ``valid`` ``[N, pred_horizon]`` bool, False past the end.
    """
    if obs_horizon < 1 or pred_horizon < 1:
        raise UserError(f"obs_horizon and pred_horizon must be at least 1, got {obs_horizon} and {pred_horizon}")
    chunks = []
    for episode in episodes:
        t = torch.arange(len(episode)).unsqueeze(-1)  # (T, 1)
        seen = (t + torch.arange(1 - obs_horizon, 1)).clamp(min=0)  # (T, obs_horizon)
        ahead = t + torch.arange(pred_horizon)  # (T, pred_horizon)
        chunks.append(
            TensorDict(
                {
                    "observation": episode.observation[seen].flatten(1),
                    "action": episode.action[ahead.clamp(max=len(episode) - 1)],
                    "valid": ahead < len(episode),
                },
                batch_size=[len(episode)],
            )
        )
    return torch.cat(chunks)


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


def _read_episode(group: h5py.Group, where: str, path: Path, control_mode: str | None) -> Episode:
    observation = group.get("obs")
    if not isinstance(observation, h5py.Dataset) or observation.ndim != 2:
        raise UserError(f"{where} has no flat state observations: {_replay_hint(path, control_mode)}")
    if not isinstance(group["actions"], h5py.Dataset) or group["actions"].ndim != 2:
        raise UserError(f"{where} has no flat actions [T, action_dim]; only single-robot tasks can be read")
    action = np.asarray(group["actions"], dtype=np.float32)
    length = action.shape[0]
    if length == 0 or observation.shape[0] != length + 1:
        raise UserError(
            f"{where} has {observation.shape[0]} observations for {length} actions, expected one more than actions"
        )
    flags = {}
    for key in ("success", "terminated", "truncated"):
        flags[key] = torch.zeros(length, dtype=torch.bool)
        if key in group:
            flags[key] = torch.from_numpy(np.asarray(group[key], dtype=bool))
            if flags[key].shape != (length,):
                raise UserError(f"{where} has {key} of shape {list(flags[key].shape)}, expected [{length}]")
    episode = Episode(torch.from_numpy(np.asarray(observation, dtype=np.float32)), torch.from_numpy(action), **flags)
    for quantity, value in (("observation", episode.observation), ("action", episode.action)):
        bad = (~torch.isfinite(value)).any(-1)  # (T or T + 1,)
        if bad.any():
            raise NonFiniteError(f"{quantity} in {where}", int(bad.int().argmax()), unit="step")
    return episode


def _check_size(quantity: str, value: torch.Tensor, expected: int | None, path: Path) -> None:
    if expected is not None and value.shape[-1] != expected:
        raise UserError(f"{path} has {value.shape[-1]}-d {quantity}s, the task has {expected}-d ones")


def _replay_hint(path: Path, control_mode: str | None) -> str:
    target = f" -c {control_mode}" if control_mode else ""
    return f"python -m mani_skill.trajectory.replay_trajectory --traj-path {path} -o state{target} --save-traj"
