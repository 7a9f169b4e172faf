"""Demonstrations without a download: ManiSkill's motion planner, converted to the policy's controller."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from tqdm import tqdm

from dsrl_torchrl.collect.spawned_process import available_cores
from dsrl_torchrl.envs.cameras import Views, make_cameras
from dsrl_torchrl.envs.in_order import in_order
from dsrl_torchrl.envs.planned_episode import record_episode
from dsrl_torchrl.envs.trajectory_file import join_parts, publishing
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.seeds import demonstration_seeds

#: A process takes as long to start as about so many episodes.
WORTH_A_PROCESS = 10


def make_demonstrations(
    path: str | Path,
    env_id: str,
    control_mode: str,
    count: int,
    seed: int = 0,
    action_noise: float = 0.0,
    max_episode_steps: Annotated[int, Field(ge=1)] | None = None,
    progress: bool = True,
    max_attempts: Annotated[int, Field(ge=1)] | None = None,
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto",
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None,
    cameras: Views | None = None,
    state: Literal["full", "proprioception"] = "full",
) -> Path:
    """Records ``count`` successful episodes of ``env_id`` into a ManiSkill h5 + json.

    Each episode has the data set ``obs`` ``[T + 1, d]``, or, with an ``image_size``, ``obs/state`` and for each entry
    of ``cameras`` one of its name, ``obs/pixels``, uint8 ``[T + 1, H, W, 3]``.

    Episode by episode: ManiSkill's motion planner solves the task from one of the run's
    :func:`~dsrl_torchrl.seeds.demonstration_seeds` in joint positions, and ManiSkill's own trajectory conversion
    follows the planned motion with ``control_mode``. The conversion is closed loop: each action is computed from where
    the robot is. So it also corrects for ``action_noise``, Gaussian noise on the arm's dimensions (the gripper is left
    alone) that is executed *and* recorded. The recorded noise gives a cloned policy its breadth: one cloned from a
    deterministic expert hardly reacts to its own noise, which leaves DSRL nothing to steer.

    Kept are episodes that are solved on their last step within ``max_episode_steps``; others are replaced by further
    seeds. An episode depends on the run's seed and its own alone, so that the same arguments give the same file
    contents, whatever the number of processes. Both files appear at once and complete, or not at all.

    Args:
        path: the ``.h5`` to write; the ``.json`` goes beside it.
        env_id: a task that the planner can solve (12 of ManiSkill's table-top tasks for the Panda arm).
        control_mode: controller of the recorded actions.
        count: number of episodes.
        seed: the run's: its episodes start from :func:`~dsrl_torchrl.seeds.demonstration_seeds`; seeds the noise, too.
        action_noise: standard deviation, in units of the normalised action (range [-1, 1]; the sum is clipped to it).
        max_episode_steps: longest episode kept, in env steps; ``None`` keeps the task's own limit, which is too short
            for most planned motions.
        progress: show a progress bar.
        max_attempts: seeds to try before giving up, ``10 * count + 10`` by default.
        processes: that record side by side; 1 records in this process. ``auto``: one per core that this process may
            use, but 10 episodes for each at least. Several are spawned: a script that calls this needs
            ``if __name__ == "__main__":``.
        image_size, cameras, state: those of :class:`~dsrl_torchrl.envs.maniskill.ManiSkillEnv`.

    Returns:
        The path of the ``.h5``.

    Raises:
        UserError: a task without a solution, an unknown or absolute controller with noise, or too few successes.
        WorkerError: a process was killed or crashed.
    """
    path = Path(path)
    seeds = demonstration_seeds(seed)[: 10 * count + 10 if max_attempts is None else max_attempts]
    looked_through = make_cameras(image_size, cameras)
    processes = _processes_for(count) if processes == "auto" else processes
    tally: dict[str, Any] = {"seed": seed, "action_noise": action_noise, "attempts": 0, "planned": 0, "recorded": 0}
    parts: list[Path] = []
    with publishing(path, tally) as folder:
        attempt = partial(
            record_episode, folder, env_id, control_mode, seed, action_noise, max_episode_steps, looked_through, state
        )
        shown = {"total": count, "desc": f"{env_id} demonstrations", "unit": "ep", "disable": not progress}
        with in_order(attempt, seeds, processes) as outcomes, tqdm(**shown) as bar:
            for outcome in outcomes:
                tally["attempts"] += 1
                tally["planned"] += outcome.planned
                if outcome.part is not None:
                    parts.append(outcome.part)
                    tally["recorded"] += 1
                    bar.update()
                bar.set_postfix(attempts=tally["attempts"], planned=tally["planned"])
                if len(parts) == count:
                    break
        if len(parts) < count:
            raise UserError(
                f"only {len(parts)} of {count} demonstrations of {env_id} in {tally['attempts']} attempts: "
                f"{tally['planned']} were planned, {len(parts)} of those solved with {control_mode} and "
                f"action_noise={action_noise} within {max_episode_steps or 'its limit of'} steps; lower action_noise, "
                "raise max_episode_steps or choose another control_mode"
            )
        join_parts(parts, folder)
    return path


def _processes_for(count: int) -> int:
    return max(1, min(available_cores(), count // WORTH_A_PROCESS))
