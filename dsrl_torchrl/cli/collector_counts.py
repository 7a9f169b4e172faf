"""``auto`` in the collector's options: how many env workers and torch threads, from the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dsrl_torchrl.errors import UserError

#: More envs than macro steps per round (8 in both algorithms) would only make the rounds longer.
MAX_WORKERS = 8
#: What networks of a few hundred units a layer can use.
MAX_THREADS = 4


def settle_collector_counts(collector: DictConfig, stored: Path) -> str | None:
    """Replaces ``auto`` in ``num_workers`` and ``threads`` by numbers, in place.

    A run keeps the numbers that it began with, on another machine too: its rollouts depend on the number of envs.
    Otherwise every core that this process may use gets an env worker; threads are the cores that the workers leave,
    since OpenMP threads that compete with workers make an update of small networks several times slower.

    Args:
        collector: ``num_workers`` and ``threads`` (an integer or ``auto``; ``threads`` may be ``None``, torch's own
            choice), ``overlap``.
        stored: the run's ``config.yaml``, if it was begun.

    Returns:
        The choice in a line, ``None`` where nothing was ``auto``.

    Raises:
        UserError: an option is neither.
    """
    if not isinstance(collector.overlap, bool):
        raise UserError(f"collector.overlap must be true or false, got {collector.overlap}")
    for name, allowed in (("num_workers", ("auto",)), ("threads", ("auto", None))):
        value = collector[name]
        if value not in allowed and not _is_count(value):
            raise UserError(f"collector.{name} must be at least 1, or auto; got {value}")
    automatic = [name for name in ("num_workers", "threads") if collector[name] == "auto"]
    if not automatic:
        return None
    begun = OmegaConf.select(OmegaConf.load(stored), "collector", default={}) if stored.exists() else {}
    cores = len(os.sched_getaffinity(0))
    chosen = {"num_workers": max(1, min(cores, MAX_WORKERS))}
    workers = collector.num_workers if _is_count(collector.num_workers) else chosen["num_workers"]
    chosen["threads"] = max(1, min(cores - workers, MAX_THREADS))
    kept = [name for name in automatic if begun.get(name, "auto") != "auto"]
    for name in automatic:
        collector[name] = begun[name] if name in kept else chosen[name]
    numbers = ", ".join(f"{name}={collector[name]}" for name in automatic)
    reason = "as this run began" if kept == automatic else f"{cores} cores"
    return f"collector: {numbers} ({reason})"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
