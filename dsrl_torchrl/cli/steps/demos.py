"""``dsrl demos``: the task's demonstrations."""

from __future__ import annotations

from pathlib import Path

from hydra.utils import instantiate

from dsrl_torchrl.data.readers.maniskill import Episode, read_demonstrations
from dsrl_torchrl.cli.run import Run


def demos(run: Run) -> Path:
    """Makes the demonstrations, or finds the user's; returns the h5 file."""
    demonstrations = run.cfg.task.demonstrations
    if demonstrations.path is not None:
        path = Path(demonstrations.path)
        read_task_demonstrations(run, path)
        return path
    path = run.demos_artifact.folder / "trajectory.h5"
    if run.demos_artifact.exists:
        run.say(f"demonstrations: {path} (exists)")
        return path
    run.demos_artifact.begin()
    instantiate(demonstrations.generator)(
        path=path,
        count=demonstrations.count,
        action_noise=demonstrations.action_noise,
        seed=run.cfg.seed,
        progress=run.cfg.progress,
    )
    episodes = read_task_demonstrations(run, path)
    run.demos_artifact.finish(episodes=len(episodes))
    run.say(f"demonstrations: {len(episodes)} episodes in {path}")
    return path


def read_task_demonstrations(run: Run, path: Path) -> list[Episode]:
    """The successful episodes of ``path``, in the task's control mode."""
    return read_demonstrations(path, control_mode=run.cfg.task.env.get("control_mode"))
