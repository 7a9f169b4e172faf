"""The graphics card of a benchmark: whether it is there, and what numbers from it hold for."""

from __future__ import annotations

import subprocess

import torch

from dsrl_torchrl.versions import installed_versions


def find_device(name: str) -> torch.device:
    """The device of that name: ``cuda``, ``cuda:<index>`` or ``cpu``; ends the command in one line if there is none."""
    try:
        device = torch.device(name)
    except RuntimeError:  # no name that torch knows
        device = None
    if device is None or device.type not in ("cuda", "cpu"):
        raise SystemExit(f"--device should be cuda, cuda:<index> or cpu, got {name}")
    if device.type == "cpu":
        return device
    found = torch.cuda.device_count()
    if (device.index or 0) >= found:
        raise SystemExit(
            f"no device {name} here (torch {torch.__version__} sees {found} CUDA devices): run it where there is one, "
            "with a CUDA build of torch, or try it out by --device cpu or --smoke"
        )
    device = torch.device("cuda", device.index or 0)
    torch.cuda.set_device(device)  # takes no device without an index
    return device


def describe(device: torch.device) -> dict[str, str | float | None]:
    """The card, its driver, and the versions of what drives it, as JSON values."""
    found: dict[str, str | float | None] = {
        "device": str(device),
        "cuda": torch.version.cuda,
        "matmul_precision": torch.get_float32_matmul_precision(),
        **installed_versions(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": _driver(),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    return found


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
