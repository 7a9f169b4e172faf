"""One demonstration: an episode that ManiSkill's motion planner solves, converted to the policy's controller."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from dsrl_torchrl.envs.cameras import Cameras
from dsrl_torchrl.envs.maniskill_task import make_gym_env
from dsrl_torchrl.envs.trajectory_file import STEM
from dsrl_torchrl.errors import UserError

#: The planner's solutions command absolute joint positions.
PLANNER_CONTROL_MODE = "pd_joint_pos"

#: Most tasks want the robot at rest to count as solved, which it never is under noise: after the planned motion the
#: last target is held, without noise, for at most so many of the planner's steps.
SETTLING_STEPS = 20


class Outcome(NamedTuple):
    """Of an attempt: whether the planner has solved it, and the file of its recording, if that was a success."""

    planned: bool
    part: Path | None


def record_episode(
    folder: Path,
    env_id: str,
    control_mode: str,
    run_seed: int,
    action_noise: float,
    max_episode_steps: int | None,
    cameras: Cameras | None,
    state: str,
    seed: int,
) -> Outcome:
    """Records the episode of one seed, in simulations of its own: nothing of an earlier one is left in them.

    Other arguments are those of :func:`~dsrl_torchrl.envs.demonstrations.make_demonstrations`.

    Args:
        folder: the recording goes into a folder inside of it that is named after the seed.
        run_seed: of the noise, together with ``seed``.
        cameras: what they see is recorded beside the state.
        seed: of the start.

    Raises:
        UserError: a task without a solution, or an unknown or absolute controller with noise.
    """
    with ExitStack() as stack:
        planner_env = _ActionLog(make_gym_env(env_id, control_mode=PLANNER_CONTROL_MODE, obs_mode="none"))
        stack.callback(planner_env.close)
        solve = _find_solution(env_id)
        env = make_gym_env(
            env_id, control_mode=control_mode, max_episode_steps=max_episode_steps, cameras=cameras, state=state
        )
        recorder = _record(env if cameras is None else _Looking(env, cameras), folder / str(seed), action_noise)
        stack.callback(recorder.close)
        if not _plan(planner_env, solve, seed):
            return Outcome(False, None)
        arm = _NoisyArm(recorder, action_noise, np.random.default_rng([run_seed, seed]))
        solved = _convert(planner_env, arm, control_mode, seed, recorder.max_episode_steps)
        recorder.flush_trajectory(save=solved)
        return Outcome(True, folder / str(seed) / f"{STEM}.h5" if solved else None)


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


class _Looking(gymnasium.ObservationWrapper):
    """Observes ``state`` ``[1, d]`` and, for each image entry, uint8 ``[1, H, W, 3]``."""

    def __init__(self, env: Any, cameras: Cameras) -> None:
        super().__init__(env)
        self._cameras = cameras

    def observation(self, observation: Any) -> dict[str, torch.Tensor]:
        seen = self._cameras.pictures(self.unwrapped, torch.zeros(1, dtype=torch.int64))
        return {"state": observation, **{entry: picture.permute(0, 2, 3, 1) for entry, picture in seen.items()}}


class _TargetsOnly(gymnasium.Wrapper):
    """Sets the controller's targets, which is all that the conversion reads of the planner's env; simulates nothing."""

    def step(self, action: Any) -> Any:
        env: Any = self.unwrapped
        env.agent.set_action(torch.as_tensor(action).unsqueeze(0))


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


def _record(env: Any, folder: Path, sigma: float) -> Any:
    from mani_skill.utils.wrappers.record import RecordEpisode

    space, control_mode = env.unwrapped.single_action_space, env.unwrapped.control_mode
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
        planned = _TargetsOnly(planner_env.env)
        from_pd_joint_pos(control_mode, np.stack(actions), planned, env)
        with env.quiet():
            for _ in range(SETTLING_STEPS):
                if env.solved:
                    break
                from_pd_joint_pos(control_mode, np.stack(actions[-1:]), planned, env)
    return env.solved and (limit is None or env.steps <= limit)
