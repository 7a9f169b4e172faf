"""What a fixture holds: a checkpoint, the entries, the noise, and the chunk that the project's own code decoded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .portable_weights import weights

FIXTURES = Path(__file__).parent / "fixtures"


def case(name: str) -> dict[str, torch.Tensor]:
    """Entries as their code takes them, ``[B, n, ...]``; ``noise``; ``chunk``, from the first executed action on."""
    return load_file(FIXTURES / name / "case.safetensors")


def flat(entry: torch.Tensor) -> torch.Tensor:
    """``[B, n, first, ...]`` -> ``[B, n * first, ...]``, as our envs give a history."""
    return entry.flatten(1, 2)


def check_chunk(policy, name: str, entries: list[str], rtol: float = 1e-5) -> None:
    """The same chunk from the same noise, relative to its largest action, in the precision of their chunk."""
    there = case(name)
    precision = there["chunk"].dtype
    inputs = [flat(there[entry]) for entry in entries] + [there["noise"]]
    inputs = [value.to(precision) if value.is_floating_point() else value for value in inputs]
    chunk = policy.to(precision)(*inputs)[:, policy.first_action :]
    difference = (chunk[:, : there["chunk"].shape[1]] - there["chunk"]).abs().max()
    assert difference <= rtol * there["chunk"].abs().max(), float(difference)


def lerobot_checkpoint(name: str, folder: Path) -> Path:
    """A copy of the fixture, with the weights that are too large to commit made by their formula."""
    shutil.copytree(FIXTURES / name, folder, dirs_exist_ok=True)
    if (folder / "shapes.json").exists():
        kept = load_file(folder / "kept.safetensors")
        shapes = json.loads((folder / "shapes.json").read_text())
        state = {key: kept[key] if key in kept else weights(key, tuple(shape)) for key, shape in shapes.items()}
        save_file(state, folder / "model.safetensors")
    return folder


def maniskill_rgb_checkpoint(folder: Path) -> Path:
    """The image policy's file, whose weights are made by their formula."""
    shapes = json.loads((FIXTURES / "maniskill_rgb" / "shapes.json").read_text())
    state = {key: weights(key, tuple(shape)) for key, shape in shapes.items()}
    torch.save({"agent": {}, "ema_agent": state}, folder / "best.pt")
    return folder / "best.pt"
