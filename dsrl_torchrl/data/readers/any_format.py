"""Demonstrations of whatever format: which it is shows in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
from tensordict.utils import NestedKey

from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.readers.lerobot import lerobot_files, read_lerobot
from dsrl_torchrl.data.readers.maniskill import read_maniskill
from dsrl_torchrl.data.readers.maniskill_json import trajectory_files
from dsrl_torchrl.data.readers.npz import npz_files, read_npz
from dsrl_torchrl.data.readers.robomimic import EPISODES, read_robomimic
from dsrl_torchrl.errors import UserError


def read_any(
    path: str | Path,
    *,
    entries: Mapping[NestedKey, str],
    control_mode: str | None = None,
    action_dim: int | None = None,
    shapes: Mapping[NestedKey, Sequence[int]] | None = None,
    instruction: str | None = None,
) -> list[Episode]:
    """The successful episodes of ManiSkill's h5 and json, robomimic's or LIBERO's HDF5, an npz, or a LeRobot folder.

    Arguments, results and errors are those of :func:`~dsrl_torchrl.data.readers.maniskill.read_maniskill`;
    ``control_mode`` is compared where the format tells it, and ``instruction`` chooses the task of a LeRobot data set
    that has several.
    """
    path = Path(path)
    if path.is_dir():
        return read_lerobot(path, entries=entries, action_dim=action_dim, shapes=shapes, instruction=instruction)
    if _is_npz(path):
        return read_npz(path, entries=entries, action_dim=action_dim, shapes=shapes)
    if _is_robomimic(path):
        return read_robomimic(path, entries=entries, action_dim=action_dim, shapes=shapes)
    _refuse_others(path)
    return read_maniskill(path, entries=entries, control_mode=control_mode, action_dim=action_dim, shapes=shapes)


def demonstration_files(path: Path) -> tuple[Path, ...]:
    """The files whose contents tell these demonstrations from every other."""
    if path.is_dir():
        return lerobot_files(path)
    if _is_npz(path):
        return npz_files(path)
    if _is_robomimic(path):
        return (path,)
    _refuse_others(path)
    return trajectory_files(path)


def _is_npz(path: Path) -> bool:
    return path.suffix == ".npz"


def _is_robomimic(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return EPISODES in file
    except (OSError, RuntimeError):  # missing or damaged: the name tells who is to say so
        return path.suffix == ".hdf5"


def _refuse_others(path: Path) -> None:
    try:
        with h5py.File(path, "r") as file:
            flat = isinstance(file.get("actions"), h5py.Dataset)
            other = not any(name.startswith("traj_") for name in file) and not trajectory_files(path)[1].exists()
    except (OSError, RuntimeError) as error:
        if path.is_file() and not trajectory_files(path)[1].exists():
            raise UserError(f"{path} cannot be opened as HDF5 ({error})") from None
        return  # ManiSkill's reader says which of the two is missing or damaged
    if flat:
        raise UserError(
            f"{path} is a file of D4RL, whose arrays are read as an npz: save actions, terminals, timeouts and the "
            "observations with numpy.savez, then task.demonstrations.path=<name>.npz"
        )
    if other:
        raise UserError(
            f"{path} is neither ManiSkill's (traj_<i>, and a json beside it) nor robomimic's (data/demo_<i>): save its "
            "arrays with numpy.savez, then task.demonstrations.path=<name>.npz"
        )
