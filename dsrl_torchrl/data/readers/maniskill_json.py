"""The json beside a ManiSkill h5: which episodes there are, how each ended, and with which controller."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from dsrl_torchrl.errors import UserError


def _truth(value: Any) -> Any:
    """``true``, ``false``, 1 and 0; pydantic alone would also take words, or refuse the numbers."""
    if value is None or value in (0, 1):
        return None if value is None else bool(value)
    raise ValueError(f"should be true or false, got {value!r}")


class RecordedEpisode(BaseModel):
    """One entry of ``episodes``; what else ManiSkill writes there is not read."""

    episode_id: int = Field(strict=True)
    success: Annotated[bool | None, BeforeValidator(_truth)] = None
    control_mode: str | None = None
    elapsed_steps: int | None = None


def _distinct(episodes: list[RecordedEpisode]) -> list[RecordedEpisode]:
    number, count = Counter(episode.episode_id for episode in episodes).most_common(1)[0]
    if count > 1:
        raise ValueError(f"names traj_{number} {count} times")
    return episodes


class _EnvInfo(BaseModel):
    env_kwargs: dict[str, Any] = {}


class TrajectoryDescription(BaseModel):
    """The whole json."""

    episodes: Annotated[list[RecordedEpisode], Field(min_length=1), AfterValidator(_distinct)]
    env_info: _EnvInfo = _EnvInfo()

    def control_mode(self, episode: RecordedEpisode) -> str | None:
        """The controller of one episode: its own, or that of the env."""
        mode = episode.control_mode or self.env_info.env_kwargs.get("control_mode")
        return mode if isinstance(mode, str) else None


def trajectory_files(h5: Path) -> tuple[Path, Path]:
    """What a trajectory consists of: the h5 and the json beside it. Their contents tell it from every other."""
    return h5, h5.with_suffix(".json")


def read_description(h5: Path) -> TrajectoryDescription:
    """The json that belongs to ``h5``.

    Raises:
        UserError: one of both files is missing, or the json is damaged or of something else.
    """
    _, path = files = trajectory_files(h5)
    for file in files:
        if not file.is_file():
            raise UserError(
                f"demonstrations not found: {file} (a ManiSkill trajectory is an h5 and a json of the same name)"
            )
    try:
        return TrajectoryDescription.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "json_invalid":
            raise UserError(f"{path} is truncated or not json ({reason})") from None
        raise UserError(f"{path} is not the json of a ManiSkill trajectory: {where or 'it'}: {reason}") from None
