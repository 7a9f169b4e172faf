"""Reading LeRobot data sets (parquet and mp4), without LeRobot."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.readers.episode_checks import check_finite, check_same_sizes, check_sizes
from dsrl_torchrl.data.readers.h5_values import JOIN, NUMBERS, to_float
from dsrl_torchrl.data.readers.lerobot_index import Info, Recorded, of_instruction, read_info, recorded_episodes
from dsrl_torchrl.data.readers.lerobot_pictures import embedded_pictures, video_frames
from dsrl_torchrl.errors import UserError

ACTION, SUCCESS, REWARD = "action", "next.success", "next.reward"


def read_lerobot(
    folder: str | Path,
    *,
    entries: Mapping[NestedKey, str],
    action_dim: int | None = None,
    shapes: Mapping[NestedKey, Sequence[int]] | None = None,
    instruction: str | None = None,
    max_episodes: int | None = None,
) -> list[Episode]:
    """Reads the successful episodes of a LeRobot data set of version 2.0, 2.1 or 3.0.

    Success is ``next.success`` where there is one, else a ``next.reward`` of 0 and 1; of a data set without both the
    last step of each episode is taken for the success. There is no observation after the last action: the last one
    stands for it, which nothing learns from.

    Args:
        folder: that has ``meta/info.json``.
        entries: entry name -> feature, such as ``{"observation": "observation.state"}``, or several vectors joined by
            ``+``. Vectors become float32 ``[T, d]``, pictures uint8 ``[T, 3, H, W]``, of the size that they have.
        action_dim: the action size that must match; ``None`` takes any.
        shapes: entry name -> the shape of one observation that must match; those left out may have any.
        instruction: of a data set with several tasks, read the episodes of this one; ``None`` reads all.
        max_episodes: read the first so many successful ones; ``None`` reads all.

    Returns:
        At least one episode, all with the same entries and sizes.

    Raises:
        UserError: pyarrow is not installed; a file is missing, damaged, or of another version or size; an entry is no
            feature.
        NonFiniteError: NaN or infinity, with the quantity, the episode and the step.
    """
    folder = Path(folder)
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("LeRobot data sets need pyarrow: pip install 'dsrl-torchrl[lerobot]'")
    info = read_info(folder)
    episodes: list[Episode] = []
    try:
        data = _DataSet(folder, info, entries)
        wanted = of_instruction(folder, data.episodes, instruction)
        for episode in wanted:
            if max_episodes is not None and len(episodes) == max_episodes:
                break
            where = f"episode {episode.number} of {folder}"
            read = data.read(episode, where)
            if read is None:
                continue
            check_sizes(read, action_dim, shapes or {}, where)
            if episodes:
                check_same_sizes(read, episodes[0], where)
            episodes.append(read)
    except UserError:
        raise
    # Arrow raises whatever it stumbles over first in a damaged file; its errors are ValueErrors and OSErrors.
    except (OSError, LookupError, RuntimeError, TypeError, ValueError, AttributeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} is damaged or not a LeRobot data set ({reason})") from None
    if not episodes:
        raise UserError(f"{folder} has no successful episode among {len(wanted)}")
    return episodes


def lerobot_files(folder: Path) -> tuple[Path, ...]:
    """The files whose contents tell this data set from every other: its description, rows and videos."""
    return tuple(sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl", ".parquet", ".mp4")))


class _DataSet:
    """Reads episodes one after the other, each parquet and each video once."""

    def __init__(self, folder: Path, info: Info, entries: Mapping[NestedKey, str]) -> None:
        self.folder, self.info, self.entries = folder, info, entries
        self._check_entries()
        self.episodes = recorded_episodes(folder, info)
        self._table: tuple[Path, Any] | None = None
        self._videos: dict[str, tuple[Path, Iterator[tuple[int, Tensor]]]] = {}

    def read(self, episode: Recorded, where: str) -> Episode | None:
        """``None`` for an episode that failed."""
        rows = self._rows(episode, where)
        action = _vectors(rows[ACTION], f"{ACTION} of {where}")
        observations = TensorDict({}, [episode.length + 1])
        for key, names in self.entries.items():
            value = torch.cat([self._values(name, rows, episode, where) for name in names.split(JOIN)], -1)
            observations.set(key, torch.cat([value, value[-1:]]))
        success = _success(rows, episode.length, where)
        if success is None:
            return None
        check_finite(observations, action, where)
        return Episode(observations, action, success, success.clone(), torch.zeros_like(success))

    def _check_entries(self) -> None:
        features = self.info.features
        if ACTION not in features:
            raise UserError(f"{self.folder} has no feature {ACTION!r}, only {', '.join(features)}")
        for names in self.entries.values():
            parts = names.split(JOIN)
            for name in parts:
                if name not in features:
                    raise UserError(
                        f"{self.folder} has no feature {name!r}, only {', '.join(features)}: name one in "
                        "task.demonstrations.entries"
                    )
            if len(parts) > 1 and any(features[name].is_image for name in parts):
                raise UserError(f"{names!r} joins features of {self.folder} that are not all vectors")

    def _rows(self, episode: Recorded, where: str) -> dict[str, Any]:
        """The columns of one episode, in the order of its frames."""
        import pyarrow.compute as compute
        import pyarrow.parquet as parquet

        if self._table is None or self._table[0] != episode.rows:
            if not episode.rows.is_file():
                raise UserError(f"demonstrations not found: {episode.rows}")
            there = parquet.read_schema(episode.rows).names
            parts = [name for names in self.entries.values() for name in names.split(JOIN)]
            wanted = {ACTION, SUCCESS, REWARD, "episode_index", "frame_index", *parts}
            if any(self.info.features[name].dtype == "video" for name in parts):
                wanted.add("timestamp")
            self._table = episode.rows, parquet.read_table(episode.rows, columns=sorted(wanted & set(there)))
        table = self._table[1]
        table = table.filter(compute.equal(table["episode_index"], episode.number)).sort_by("frame_index")
        if table.num_rows != episode.length:
            raise UserError(f"{where} has {table.num_rows} rows, the description says {episode.length}")
        self._check_steps(table, where)
        return {name: table[name] for name in table.column_names}

    def _check_steps(self, table: Any, where: str) -> None:
        """Raises :class:`UserError` unless row t is step t, and its time that of the t-th frame of a video."""
        steps = np.arange(table.num_rows)
        if not np.array_equal(table["frame_index"].to_numpy(), steps):
            raise UserError(f"{where} should have the frame_index 0, 1, ... {len(steps) - 1}, it skips or repeats some")
        if "timestamp" in table.column_names:
            off = np.abs(table["timestamp"].to_numpy().reshape(-1) * self.info.fps - steps)
            if not (off < 0.5).all():  # NaN, too
                raise UserError(
                    f"{where}: the timestamp of step {int(np.argmin(off < 0.5))} is not that of a frame at "
                    f"{self.info.fps:g} frames a second: record it again, or at its own rate"
                )

    def _values(self, name: str, rows: dict[str, Any], episode: Recorded, where: str) -> Tensor:
        what = f"{name} of {where}"
        if self.info.features[name].dtype == "video":
            return self._frames(name, episode)
        if name not in rows:
            raise UserError(f"{where} has no column {name!r}")
        if self.info.features[name].dtype == "image":
            return embedded_pictures(rows[name].to_pylist(), what)
        return _vectors(rows[name], what)

    def _frames(self, name: str, episode: Recorded) -> Tensor:
        path = episode.frames[name][0]
        if name not in self._videos or self._videos[name][0] != path:
            together = [other for other in self.episodes if other.frames[name][0] == path]
            frames = video_frames(path, [(other.frames[name][1], other.length) for other in together], self.info.fps)
            self._videos[name] = path, zip((other.number for other in together), frames, strict=True)
        # Episodes of other tasks, in the same mp4, are passed over.
        return next(frames for number, frames in self._videos[name][1] if number == episode.number)


def _vectors(column: Any, what: str) -> Tensor:
    """A parquet column of numbers or of lists of as many numbers, ``[T, d]`` float32."""
    values = np.asarray(column.to_pylist())
    if values.dtype.kind not in NUMBERS or values.ndim not in (1, 2):
        raise UserError(f"{what} should be numbers or lists of as many numbers each, but is of type {column.type}")
    return to_float(values.reshape(len(values), -1))


def _success(rows: dict[str, Any], length: int, where: str) -> Tensor | None:
    """``[T]`` bool; ``None`` for an episode that failed."""
    for name in (SUCCESS, REWARD):
        if name in rows:
            told = _vectors(rows[name], f"{name} of {where}").flatten()
            if torch.isin(told, torch.tensor([0.0, 1.0])).all():
                return told == 1 if told.any() else None
            if name == SUCCESS or not told.isfinite().all():
                raise UserError(f"{name} of {where} should be {'0 or 1' if name == SUCCESS else 'finite'}, it is not")
    return torch.arange(length) == length - 1
