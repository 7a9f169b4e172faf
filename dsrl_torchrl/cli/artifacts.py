"""The run folder: which step's result exists, and with which configuration it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.files import write_json

MARKER = "artifact.json"


def config_hash(config: Mapping[str, Any]) -> str:
    """Short hash of a configuration, independent of key order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def filled(stored: Any, default: Any) -> Any:
    """``stored`` with what it lacks taken from ``default``: what an option that is newer than the record was then."""
    if not (isinstance(stored, dict) and isinstance(default, dict)):
        return stored
    missing = {key: value for key, value in default.items() if key not in stored}
    return {key: filled(value, default.get(key)) for key, value in stored.items()} | missing


def differing(config: Any, default: Any) -> Any:
    """The part of a configuration that is not as the default: what its hash is taken of."""
    return {
        key: differing(value, default[key]) if isinstance(value, dict) and isinstance(default.get(key), dict) else value
        for key, value in config.items()
        if key not in default or value != default[key]
    }


def config_differences(stored: Any, given: Any, prefix: str = "") -> Iterator[str]:
    """Every leaf in which two configurations differ, as ``name (stored there, given here)``."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys(), key=str):
            yield from config_differences(stored.get(key), given.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif stored != given:
        yield f"{prefix} ({stored} there, {given} here)"


class Artifact:
    """One step's result in a folder, finished when its marker file says so.

    Args:
        folder: where the step writes.
        config: the part of the configuration that the result depends on, as plain JSON values.
        default: the defaults of the same options. A folder survives an option that was added after it was made, if
            that is at its default.
        marker: name of the marker file.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], default: dict[str, Any] | None = None, marker: str = MARKER
    ) -> None:
        self.folder = folder
        self.config, self.default = config, default or {}
        self.path = folder / marker

    @property
    def exists(self) -> bool:
        """Whether the step finished here with this configuration.

        Raises:
            UserError: it finished here with another configuration, or left a checkpoint.
        """
        stored = self._read()
        if stored is None or not (stored["finished"] or self.has_checkpoint):
            return False  # what failed at once claims nothing: the corrected command may begin anew
        differences = list(config_differences(filled(stored["config"], self.default), self.config))
        if differences:
            shown = ", ".join(differences[:3]) + (f" and {len(differences) - 3} more" if len(differences) > 3 else "")
            raise UserError(
                f"{self.folder} belongs to another configuration: {shown}; choose another name= or go back to that one"
            )
        return bool(stored["finished"])

    @property
    def has_checkpoint(self) -> bool:
        """Whether the step was interrupted here and can go on."""
        return any((self.folder / "checkpoints").glob("checkpoint*"))

    @property
    def facts(self) -> dict[str, Any]:
        """What the finished step recorded about its result."""
        stored = self._read()
        return stored["facts"] if stored else {}

    def begin(self) -> None:
        """Claims the folder for this configuration."""
        if not self.exists:
            write_json(self.path, {"finished": False, "config": self.config, "facts": {}})

    def finish(self, **facts: Any) -> None:
        """Marks the step as done."""
        write_json(self.path, {"finished": True, "config": self.config, "facts": facts})

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            stored = json.loads(self.path.read_text())
            config, facts = dict(stored["config"]), dict(stored["facts"])
            return {"finished": stored["finished"], "config": config, "facts": facts}
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.path} is not a record of a dsrl run: move the folder away or choose another name="
            ) from None
