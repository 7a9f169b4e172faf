"""``auto`` in device, env workers and threads: settled once, from the machine, before anything reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.targets import Target, find_target, parameters
from dsrl_torchrl.cli.values import AUTO
from dsrl_torchrl.collect.spawned_process import available_cores
from dsrl_torchrl.errors import UserError

#: More envs than macro steps per round (8) would only make the rounds longer.
MAX_WORKERS = 8
#: What networks of a few hundred units a layer can use.
USEFUL_THREADS = 4


def settle_machine(config: RunConfig, stored: Path | None) -> tuple[RunConfig, str | None]:
    """Replaces ``auto`` in ``device``, ``collector.num_workers`` and ``collector.threads``.

    A run keeps the counts that it began with, on another machine too: its rollouts depend on the number of envs.
    Otherwise every core that this process may use gets an env worker; threads are the cores that the workers leave,
    since OpenMP threads that compete with workers make an update of small networks several times slower. The device is
    this machine's: a run may go on elsewhere.

    Args:
        config: the checked configuration.
        stored: the run's ``config.yaml``, there if it was begun; ``None`` outside of a run folder.

    Returns:
        The settled configuration, and the choice of counts in a line, ``None`` where neither was ``auto``.

    Raises:
        UserError: a CUDA device that is not there.
    """
    config = config.replace(device=_device(config.device))
    collector = config.collector
    automatic = [name for name in ("num_workers", "threads") if getattr(collector, name) == AUTO]
    if not automatic:
        return config, None
    begun = _begun(stored)
    cores = available_cores()
    env = config.task.env
    on_gpu = env.get("num_envs", 1) != 1 and _on_gpu(env)  # one process has them all
    chosen = {"num_workers": 1 if on_gpu else max(1, min(cores, MAX_WORKERS))}
    workers = chosen["num_workers"] if collector.num_workers == AUTO else collector.num_workers
    chosen["threads"] = max(1, min(cores - workers, USEFUL_THREADS))
    kept = [name for name in automatic if begun.get(name, AUTO) != AUTO]
    settled = {name: begun[name] if name in kept else chosen[name] for name in automatic}
    numbers = ", ".join(f"{name}={value}" for name, value in settled.items())
    reason = "as this run began" if kept == automatic else f"{cores} cores"
    return config.replace(collector=collector.replace(**settled)), f"collector: {numbers} ({reason})"


def _on_gpu(env: Target) -> bool:
    backend = env.get("sim_backend", "auto") if "sim_backend" in parameters(find_target(env, "task.env")) else None
    return backend == "physx_cuda" or (backend == "auto" and torch.cuda.is_available())


def _device(wanted: str) -> str:
    if wanted == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={wanted}, but torch sees {torch.cuda.device_count()} CUDA devices; device=cpu works")
    return wanted


def _begun(stored: Path | None) -> dict[str, Any]:
    if stored is None or not stored.exists():
        return {}
    try:
        return dict(yaml.safe_load(stored.read_text())["collector"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        raise UserError(f"{stored} is damaged: choose another name=, or num_workers and threads in numbers") from None
