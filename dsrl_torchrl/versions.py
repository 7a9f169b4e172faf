"""Versions that a result depends on."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = ("dsrl-torchrl", "torch", "torchrl", "tensordict", "numpy", "mani_skill", "sapien", "gymnasium")


def installed_versions() -> dict[str, str | None]:
    """Of Python and :data:`PACKAGES`; ``None`` where one is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
