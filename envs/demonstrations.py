"""Demonstrations without a download: ManiSkill's motion planner, converted to the policy's controller."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from dsrl_torchrl.envs.maniskill import make_gym_env
from dsrl_torchrl.envs.trajectory_file import STEM, publishing
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.seeds import demonstration_seeds

#: The planner's solutions command absolute joint positions.
PLANNER_CONTROL_MODE = "pd_joint_pos"

#: Most tasks want the robot at rest to count as solved, which it never is under noise: after the planned motion the
#: last target is held, without noise, for at most so many of the planner's steps.
SETTLING_STEPS = 20


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
) -> Path:
    """Records ``count`` successful episodes of ``env_id`` into a ManiSkill h5 + json, state observations.

    Episode by episode: ManiSkill's motion planner solves the task from one of the run's
    :func:`~dsrl_torchrl.seeds.demonstration_seeds` in joint positions, and ManiSkill's own trajectory conversion
    follows the planned motion with ``control_mode``. The conversion is closed loop: each action is computed from where
    the robot is. So it also corrects for ``action_noise``, Gaussian noise on the arm's dimensions (the gripper is left
    alone) that is executed *and* recorded. The recorded noise gives a cloned policy its breadth: one cloned from a
    deterministic expert hardly reacts to its own noise, which leaves DSRL nothing to steer.

    Kept are episodes that are solved on their last step within ``max_episode_steps``; others are replaced by further
    seeds. The same arguments give the same file contents. Both files appear at once and complete, or not at all.

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

    Returns:
        The path of the ``.h5``.

    Raises:
        UserError: a task without a solution, an unknown or absolute controller with noise, or too few successes.
    """
    path = Path(path)
    attempts = 10 * count + 10 if max_attempts is None else max_attempts
    tally: dict[str, Any] = {"seed": seed, "action_noise": action_noise, "attempts": 0, "planned": 0, "recorded": 0}
    with publishing(path, tally) as folder, ExitStack() as stack:
        planner_env = _ActionLog(make_gym_env(env_id, control_mode=PLANNER_CONTROL_MODE, obs_mode="none"))
        stack.callback(planner_env.close)
        solve = _find_solution(env_id)
        recorder = _make_recorder(folder, env_id, control_mode, max_episode_steps, action_noise)
        stack.callback(recorder.close)
        env = _NoisyArm(recorder, action_noise, np.random.default_rng(seed))
        bar = stack.enter_context(tqdm(total=count, desc=f"{env_id} demonstrations", unit="ep", disable=not progress))
        for episode_seed in demonstration_seeds(seed)[:attempts]:
            if tally["recorded"] == count:
                break
            tally["attempts"] += 1
            if _plan(planner_env, solve, episode_seed):
                tally["planned"] += 1
                recorded = _convert(planner_env, env, control_mode, episode_seed, recorder.max_episode_steps)
                recorder.flush_trajectory(save=recorded)
                tally["recorded"] += recorded
                bar.update(int(recorded))
            bar.set_postfix(attempts=tally["attempts"], planned=tally["planned"])
        if tally["recorded"] < count:
            raise UserError(
                f"only {tally['recorded']} of {count} demonstrations of {env_id} in {tally['attempts']} attempts: "
                f"{tally['planned']} were planned, {tally['recorded']} of those solved with {control_mode} and "
                f"action_noise={action_noise} within {recorder.max_episode_steps} steps; lower action_noise, raise "
                "max_episode_steps or choose another control_mode"
            )
    return path


class _ActionLog(gymnasium.Wrapper):
    """Keeps the actions of the episode under way, and whether its last step was a success."""

    def reset(self, **kwargs: Any) -> Any:
        self.actions: list[np.ndarray] = []
        self.solved = False
        return self.env.reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        result = self.env.step(action)
        self.actions.append(np.asarray(action, dtype=np.float32))
        self.solved = bool(result[-1]["success"])
        return result


class _NoisyArm(gymnasium.Wrapper):
    """Executes, and lets the recorder beneath record, the action plus Gaussian noise on the arm's dimensions."""

    def __init__(self, env: Any, sigma: float, generator: np.random.Generator) -> None:
        super().__init__(env)
        start, end = env.unwrapped.agent.controller.action_mapping["arm"]
        space = env.unwrapped.single_action_space
        self.scale = np.zeros(space.shape, dtype=np.float32)
        self.scale[start:end] = sigma
        self.low, self.high, self.generator = space.low, space.high, generator
        self.noisy = True
        self.solved = False
        self.steps = 0

    def reset(self, **kwargs: Any) -> Any:
        self.solved, self.steps = False, 0
        return self.env.reset(**kwargs)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Within it, no noise."""
        self.noisy = False
        try:
            yield
        finally:
            self.noisy = True

    def step(self, action: Any) -> Any:
        action = np.asarray(torch.as_tensor(action).cpu(), dtype=np.float32).reshape(self.scale.shape)
        if self.noisy:
            noise = self.scale * self.generator.standard_normal(self.scale.shape, dtype=np.float32)
            action = np.clip(action + noise, self.low, self.high)
        result = self.env.step(action)
        self.steps += 1
        self.solved = bool(result[-1]["success"])
        return result


def _find_solution(env_id: str) -> Any:
    from mani_skill.examples.motionplanning.panda.run import MP_SOLUTIONS

    if env_id not in MP_SOLUTIONS:
        raise UserError(
            f"ManiSkill's motion planner has no solution for {env_id}, only for {', '.join(sorted(MP_SOLUTIONS))}; "
            "give the path of a recorded h5 instead"
        )
    return MP_SOLUTIONS[env_id]


def _make_recorder(folder: Path, env_id: str, control_mode: str, max_episode_steps: int | None, sigma: float) -> Any:
    env = make_gym_env(env_id, control_mode=control_mode, max_episode_steps=max_episode_steps)
    from mani_skill.utils.wrappers.record import RecordEpisode

    space = env.unwrapped.single_action_space
    if sigma and not (np.allclose(space.low, -1) and np.allclose(space.high, 1)):
        env.close()
        raise UserError(
            f"action_noise={sigma} needs a controller with actions in [-1, 1], which {control_mode} has not"
        )
    return RecordEpisode(
        env,
        output_dir=str(folder),
        trajectory_name=STEM,
        save_video=False,
        save_on_reset=False,
        record_reward=False,
        source_type="motionplanning",
        source_desc="ManiSkill's motion planner, converted to another controller with recorded exploration noise",
    )


def _plan(env: _ActionLog, solve: Any, seed: int) -> bool:
    """Solve one episode in joint positions; whether its last step is a success."""
    # The planner prints why it fails; an unreachable pose is an ordinary event here, and a further seed replaces it.
    with redirect_stdout(io.StringIO()):
        try:
            outcome = solve(env, seed=seed, debug=False, vis=False)
        except (RuntimeError, ValueError, AssertionError, IndexError):
            return False
    return outcome != -1 and env.solved


def _convert(planner_env: _ActionLog, env: _NoisyArm, control_mode: str, seed: int, limit: int | None) -> bool:
    """Replay the planned episode with the target controller; whether it is solved in time."""
    from mani_skill.trajectory.utils.actions.conversion import from_pd_joint_pos

    actions = list(planner_env.actions)
    # A rebuilt scene: no contact of the last episode in the first observation, and what a seeded reset gives later.
    env.reset(seed=seed, options={"reconfigure": True})
    if control_mode == PLANNER_CONTROL_MODE:
        for action in actions:
            env.step(action)
    else:
        # The conversion steps the planner's env along, to know where its controller is heading.
        planner_env.env.reset(seed=seed)
        from_pd_joint_pos(control_mode, np.stack(actions), planner_env.env, env)
        with env.quiet():
            for _ in range(SETTLING_STEPS):
                if env.solved:
                    break
                from_pd_joint_pos(control_mode, np.stack(actions[-1:]), planner_env.env, env)
    return env.solved and (limit is None or env.steps <= limit)
