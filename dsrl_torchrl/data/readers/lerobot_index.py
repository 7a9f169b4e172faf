"""What a LeRobot data set holds: features, episodes, and where each episode's rows and frames are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from dsrl_torchrl.errors import UserError

INFO = Path("meta", "info.json")
#: Versions of the format whose files are where this module looks for them.
VERSIONS = ("v2.0", "v2.1", "v3.0")


class Feature(BaseModel):
    """One entry of ``features``."""

    dtype: str
    shape: list[int]

    @property
    def is_image(self) -> bool:
        """Whether its values are pictures."""
        return self.dtype in ("image", "video")


class Info(BaseModel):
    """``meta/info.json``; what else LeRobot writes there is not read."""

    codebase_version: Literal["v2.0", "v2.1", "v3.0"]
    fps: float = Field(gt=0)
    features: dict[str, Feature]
    data_path: str
    video_path: str | None = None
    chunks_size: int = Field(default=1000, ge=1)


@dataclass(frozen=True)
class Recorded:
    """One episode."""

    number: int
    length: int
    rows: Path  #: the parquet file with its rows, maybe among others
    frames: dict[str, tuple[Path, int]]  #: of a video feature: the mp4, and the number of the first frame
    tasks: tuple[str, ...]  #: what was to be done, in words


class _Listed(BaseModel):
    episode_index: int = Field(ge=0)
    length: int = Field(ge=1)
    tasks: tuple[str, ...] = ()


def read_info(folder: Path) -> Info:
    """The description of the data set in ``folder``.

    Raises:
        UserError: it is missing, damaged, or of another version of the format.
    """
    path = folder / INFO
    if not path.is_file():
        raise UserError(f"demonstrations not found: {path} (a LeRobot data set is a folder that has {INFO})")
    try:
        return Info.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path} is not the description of a LeRobot data set of a version that is read here "
            f"({', '.join(VERSIONS)}): {where or 'it'}: {first['msg']}"
        ) from None


def recorded_episodes(folder: Path, info: Info) -> list[Recorded]:
    """All episodes, in their order.

    Raises:
        UserError: there is none, one stands there twice, or a path leads out of the folder.
    """
    videos = [name for name, feature in info.features.items() if feature.dtype == "video"]
    found = []
    for row in _rows(folder, info):
        listed = TypeAdapter(_Listed).validate_python(row)
        names: dict[str, Any] = {"episode_index": listed.episode_index}
        names["episode_chunk"] = listed.episode_index // info.chunks_size
        names |= {name: row.get(f"data/{name}") for name in ("chunk_index", "file_index")}
        frames = {}
        for key in videos:
            told = {name: row.get(f"videos/{key}/{name}") for name in ("chunk_index", "file_index")}
            begin = row.get(f"videos/{key}/from_timestamp") or 0.0  # before v3 each episode has its own mp4
            path = _inside(folder, info.video_path or "", names | told | {"video_key": key})
            frames[key] = path, round(float(begin) * info.fps)
        rows = _inside(folder, info.data_path, names)
        found.append(Recorded(listed.episode_index, listed.length, rows, frames, listed.tasks))
    if not found:
        raise UserError(f"{folder} has no episodes")
    if len({episode.number for episode in found}) < len(found):
        raise UserError(f"{folder} describes an episode twice: its meta/episodes are damaged")
    return sorted(found, key=lambda episode: episode.number)


def _rows(folder: Path, info: Info) -> Iterator[dict[str, Any]]:
    import json

    if info.codebase_version != "v3.0":
        for line in (folder / "meta" / "episodes.jsonl").read_text().splitlines():
            yield json.loads(line)
        return
    import pyarrow.parquet as parquet

    for path in sorted((folder / "meta" / "episodes").glob("*/*.parquet")):
        # Statistics have dozens of columns.
        names = [name for name in parquet.read_schema(path).names if not name.startswith("stats/")]
        yield from parquet.read_table(path, columns=names).to_pylist()


def _inside(folder: Path, template: str, names: dict[str, Any]) -> Path:
    path = (folder / template.format(**names)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"{folder / INFO} leads to {path}, which is outside of the data set")
    return path


def of_instruction(folder: Path, episodes: list[Recorded], instruction: str | None) -> list[Recorded]:
    """The episodes of one task, of a data set that has several; of one task or without ``instruction`` all.

    Raises:
        UserError: it has several tasks, and none is that.
    """
    tasks = sorted({task for episode in episodes for task in episode.tasks})
    if instruction is None or len(tasks) < 2:
        return episodes
    kept = [
        episode for episode in episodes if instruction.strip().lower() in {t.strip().lower() for t in episode.tasks}
    ]
    if not kept:
        few = "; ".join(tasks[:3]) + ("; ..." if len(tasks) > 3 else "")
        raise UserError(f"{folder} has {len(tasks)} tasks, none of which is the env's, {instruction!r}: {few}")
    return kept
