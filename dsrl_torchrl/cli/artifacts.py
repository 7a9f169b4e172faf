"""The run folder: which step's artifact exists, and with which configuration it was made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsrl_torchrl.errors import UserError

MARKER = "artifact.json"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a crash leaves the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def config_hash(config: dict) -> str:
    """Short hash of a configuration, independent of key order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def config_differences(stored: Any, given: Any, prefix: str = "") -> Iterator[str]:
    """Every leaf in which two configurations differ, as ``name (stored there, given here)``."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys(), key=str):
            yield from config_differences(stored.get(key), given.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif stored != given:
        yield f"{prefix} ({stored} there, {given} here)"


class Artifact:
    """One step's result in a folder of its own, finished when its marker file exists.

    Args:
        folder: where the step writes.
        config: the part of the configuration that the result depends on.
    """

    def __init__(self, folder: Path, config: dict) -> None:
        self.folder = folder
        self.config = config

    @property
    def exists(self) -> bool:
        """Whether the step finished here with this configuration.

        Raises:
            UserError: it was begun here with another configuration.
        """
        stored = self._read()
        if stored is None:
            return False
        self._check(stored["config"])
        return bool(stored["finished"])

    @property
    def facts(self) -> dict:
        """What the finished step recorded about its result."""
        stored = self._read()
        return stored["facts"] if stored else {}

    def begin(self) -> None:
        """Claims the folder for this configuration."""
        if not self.exists:
            write_json(self.folder / MARKER, {"finished": False, "config": self.config, "facts": {}})

    def finish(self, **facts: Any) -> None:
        """Marks the step as done."""
        write_json(self.folder / MARKER, {"finished": True, "config": self.config, "facts": facts})

    def _read(self) -> dict | None:
        path = self.folder / MARKER
        if not path.exists():
            return None
        try:
            stored = json.loads(path.read_text())
            return {"finished": stored["finished"], "config": stored["config"], "facts": stored["facts"]}
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UserError(
                f"{path} is not a record of a dsrl run: move the folder away or choose another name="
            ) from None

    def _check(self, stored: dict) -> None:
        differences = list(config_differences(stored, self.config))
        if differences:
            shown = ", ".join(differences[:3]) + (f" and {len(differences) - 3} more" if len(differences) > 3 else "")
            raise UserError(
                f"{self.folder} belongs to another configuration: {shown}; choose another name= or go back to that one"
            )
