"""What two configurations, as plain nested dicts, have in common and what not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any


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


def at(config: Any, path: tuple[str, ...]) -> Any:
    """The value at a path of names."""
    for name in path:
        config = config[name]
    return config


def without(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """``config`` but for what is at a path of names."""
    if not path:
        return config
    name, *rest = path
    inner = without(config[name], tuple(rest)) if rest else None
    return {key: inner if key == name else value for key, value in config.items() if rest or key != name}
