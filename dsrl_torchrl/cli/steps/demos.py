"""``dsrl demos``: the task's demonstrations."""

from __future__ import annotations

from pathlib import Path

from dsrl_torchrl.cli.config import TaskOptions
from dsrl_torchrl.cli.targets import make
from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.readers.maniskill import read_demonstrations

FILE = "trajectory.h5"


def record_demonstrations(task: TaskOptions, path: Path, *, seed: int, progress: bool) -> None:
    """Records ``task.demonstrations.count`` episodes with the task's generator."""
    demonstrations = task.demonstrations
    make(
        task.generator_spec,
        path=str(path),
        count=demonstrations.count,
        action_noise=demonstrations.action_noise,
        seed=seed,
        progress=progress,
    )


def read_task_demonstrations(task: TaskOptions, path: Path) -> list[Episode]:
    """The successful episodes of ``path``, in the task's control mode."""
    entries = {_key(name): dataset for name, dataset in task.demonstrations.entries.items()}
    return read_demonstrations(path, entries=entries, control_mode=task.control_mode or None)


def _key(name: str) -> str | tuple[str, ...]:
    """``agent.state`` is the nested entry ``("agent", "state")``."""
    return tuple(name.split(".")) if "." in name else name
