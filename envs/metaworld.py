"""Meta-World: 50 manipulation tasks of a Sawyer arm in MuJoCo, by state or by pictures."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from tensordict.utils import NestedKey

from dsrl_torchrl.data.demonstration_transitions import step_penalty
from dsrl_torchrl.envs.episodic import EpisodicEnv
from dsrl_torchrl.envs.mujoco_pictures import MujocoPictures, camera_names
from dsrl_torchrl.errors import UserError

#: Meta-World's whole observation (hand, gripper and objects, now and one step ago, and the goal), and the part that a
#: robot knows of itself: the hand's position and the gripper's opening.
STATE_DIM, PROPRIOCEPTION_DIM = 39, 4
CAMERAS: Mapping[str, str] = {"pixels": "corner4"}
#: These hang head down in Meta-World's scene.
UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")


class MetaWorldEnv(EpisodicEnv):
    """A Meta-World task, ``N`` simulations one after the other; goals are drawn anew in every episode.

    Entries, ends and seeds as :class:`~dsrl_torchrl.envs.episodic.EpisodicEnv` has them. The same seed and the same
    actions give the same episode bit for bit, in any env and any process. ``success`` is Meta-World's own ``info``;
    actions are a displacement of the hand of at most 1 cm on each axis and the gripper's effort, all in [-1, 1]. The
    goal is in the observation (``-goal-observable``).

    Args:
        env_id: one of the 50 tasks, e.g. ``push-v3``.
        num_envs: ``N``.
        max_episode_steps: time limit in env steps; Meta-World's own is 500.
        reward: ``step_penalty`` is ``-1 + success_bonus * success``; ``dense`` is Meta-World's, in [0, 10], by 10.
        success_bonus: see ``step_penalty``.
        terminate_on_success: ``False`` runs every episode to its time limit, for evaluation.
        state: ``full`` is Meta-World's observation ``[39]``, ``proprioception`` hand and gripper ``[4]``: beside
            pictures, so that the objects are seen in these alone.
        image_size: ``S`` adds what the cameras see, ``[3, S, S]`` each; ``None`` for state alone.
        cameras: entry -> camera. ``corner4`` is ``corner2`` moved closer, as visual Meta-World work has it since Masked
            World Models (Seo et al., 2022). The corner cameras hang head down in the scene; their pictures are upright.
        seed: seeds the stream of starts; ``None`` takes fresh entropy.
        device: where the tensors live; the simulation is on the CPU.
        observation_key: name of the state's entry.

    Raises:
        UserError: Meta-World is not installed, an unknown task or camera, or pictures without OpenGL.
    """

    def __init__(
        self,
        env_id: str = "push-v3",
        num_envs: Annotated[int, Field(ge=1)] = 1,
        max_episode_steps: Annotated[int, Field(ge=1)] = 500,
        reward: Literal["step_penalty", "dense"] = "step_penalty",
        success_bonus: float = 1.0,
        terminate_on_success: bool = True,
        state: Literal["full", "proprioception"] = "full",
        image_size: Annotated[int, Field(ge=8, le=2048)] | None = None,
        cameras: Mapping[str, str] = CAMERAS,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        observation_key: NestedKey = "observation",
    ) -> None:
        self._tasks = [make_task(env_id) for _ in range(num_envs)]
        cameras = {} if image_size is None else dict(cameras)
        known = camera_names(self._tasks[0].model)
        for camera in cameras.values():
            if camera not in known:
                raise UserError(f"{env_id} has no camera {camera!r}; it has {', '.join(known)}")
        space = self._tasks[0].action_space
        super().__init__(
            num_envs=num_envs,
            obs_dim=STATE_DIM if state == "full" else PROPRIOCEPTION_DIM,
            low=torch.as_tensor(space.low),
            high=torch.as_tensor(space.high),
            terminate_on_success=terminate_on_success,
            seed=seed,
            device=device,
            observation_key=observation_key,
            images={entry: (3, image_size or 0, image_size or 0) for entry in cameras},
        )
        self.is_closed = False  # EnvBase starts closed
        self.env_id, self.max_episode_steps, self.state = env_id, max_episode_steps, state
        self.reward, self.success_bonus = reward, success_bonus
        self.cameras, self.image_size = cameras, image_size
        #: Meta-World's observations, which the scripted experts read, ``[N, 39]``.
        self.full_state = np.zeros((num_envs, STATE_DIM))
        self._success = np.zeros(num_envs, dtype=bool)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        # Made before the first episode, so that a machine without OpenGL says so at once.
        self._draw = None if image_size is None else MujocoPictures(self._tasks[0].model, image_size)

    def __repr__(self) -> str:
        return f"MetaWorldEnv({self.env_id}, num_envs={self.batch_size.numel()})"

    def _start(self, seeds: list[int], env_idx: torch.Tensor | None, asked: bool) -> tuple[torch.Tensor, torch.Tensor]:
        for index in range(len(seeds)) if env_idx is None else env_idx.tolist():
            # Meta-World ignores reset(seed=...).
            self._tasks[index].seed(seeds[index])
            self.full_state[index], _ = self._tasks[index].reset()
            if self._draw is not None:
                self._place(self._tasks[index])
            self._success[index], self._elapsed[index] = False, 0
        return self._observation(), torch.from_numpy(self._success)

    def _advance(
        self, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        dense = np.zeros(len(self._tasks))
        for index, (task, one) in enumerate(zip(self._tasks, action.cpu().numpy().clip(-1, 1), strict=True)):
            self.full_state[index], dense[index], _, _, info = task.step(one)
            self._success[index] = info["success"] > 0
        self._elapsed += 1
        success = torch.from_numpy(self._success)
        reward = torch.from_numpy(dense / 10)
        if self.reward == "step_penalty":
            reward = step_penalty(success, self.success_bonus)
        return self._observation(), success, reward, success, torch.from_numpy(self._elapsed >= self.max_episode_steps)

    def get_state(self) -> list[tuple[Any, ...]]:
        """The simulation, the task's own numbers and the elapsed steps of each env, which :meth:`set_state` takes."""
        return [
            (_task_state(task), self.full_state[index].copy(), self._success[index], self._elapsed[index])
            for index, task in enumerate(self._tasks)
        ]

    def set_state(self, states: Sequence[tuple[Any, ...]]) -> None:
        """Puts env ``i`` into ``states[i]``, of whichever env of the same task that was."""
        for index, (task, (state, *own)) in enumerate(zip(self._tasks, states, strict=True)):
            _set_task_state(task, state)
            self.full_state[index], self._success[index], self._elapsed[index] = own

    @staticmethod
    def _place(task: Any) -> None:
        """Moves what is drawn to where a reset has put it: Meta-World leaves that to the next physics step.

        Before, goals and what is set by its model (drawers, doors) are where they were before the reset. Kinematics
        alone: the physics, which begins with the same, stays bit for bit what it is without pictures.
        """
        import mujoco

        mujoco.mj_kinematics(task.model, task.data)
        mujoco.mj_camlight(task.model, task.data)

    def _observation(self) -> torch.Tensor:
        return torch.from_numpy(self.full_state[:, : self.observation_spec[self.observation_key].shape[-1]])

    def _images(self, env_idx: torch.Tensor) -> Mapping[NestedKey, torch.Tensor]:
        return {entry: self._pictures_of(camera, env_idx) for entry, camera in self.cameras.items()}

    def _pictures_of(self, camera: str, env_idx: torch.Tensor) -> torch.Tensor:
        assert self._draw is not None
        tasks = [self._tasks[index] for index in env_idx.tolist()]
        pictures = np.stack([self._draw(task.model, task.data, camera) for task in tasks])  # (n, H, W, 3)
        if camera in UPSIDE_DOWN:
            pictures = pictures[:, ::-1, ::-1]
        return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Frees the simulations."""
        if not self.is_closed:
            if self._draw is not None:
                self._draw.close()
            for task in self._tasks:
                task.close()
        super().close(raise_if_closed=raise_if_closed)


def _task_state(task: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """MuJoCo's integration state, where the model has its bodies and sites, and the numbers that the task keeps."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    simulation = np.empty(mujoco.mj_stateSize(task.model, kind))
    mujoco.mj_getState(task.model, task.data, simulation, kind)
    numbers = {name: copy(value) for name, value in vars(task).items() if _is_number(task, value)}
    return simulation, task.model.body_pos.copy(), task.model.site_pos.copy(), numbers


def _set_task_state(task: Any, state: tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]) -> None:
    import mujoco

    simulation, task.model.body_pos[:], task.model.site_pos[:], numbers = state
    vars(task).update({name: copy(value) for name, value in numbers.items()})
    mujoco.mj_setState(task.model, task.data, simulation, mujoco.mjtState.mjSTATE_INTEGRATION)


def _is_number(task: Any, value: Any) -> bool:
    """Not an object, nor a window on the simulation: some of Meta-World's numbers follow a body."""
    if isinstance(value, np.ndarray):
        data = task.data
        return not any(np.may_share_memory(value, live) for live in (data.xpos, data.site_xpos, data.geom_xpos))
    return value is None or isinstance(value, (bool, int, float, np.generic))


def make_task(env_id: str) -> Any:
    """One of Meta-World's env classes, set up as its benchmarks do: a goal a seed, the goal observed.

    Raises:
        UserError: as :class:`MetaWorldEnv`.
    """
    tasks, _ = import_metaworld()
    if env_id not in tasks:
        near = difflib.get_close_matches(env_id, tasks, n=3) or sorted(tasks)[:5]
        raise UserError(f"unknown Meta-World task {env_id!r}; near it: {', '.join(near)}")
    task = tasks[env_id]()
    task._set_task_called, task._partially_observable = True, False
    # It is computed once, by __init__, and then clips the goal to the zeros that hide it.
    vars(task).pop("sawyer_observation_space", None)
    task._freeze_rand_vec, task.seeded_rand_vec = False, True
    # The time limit is ours: theirs raises one step later, and a macro step may go on beyond another env's end.
    task.max_path_length = np.inf
    return task


@cache
def import_metaworld() -> tuple[dict[str, Any], dict[str, Any]]:
    """The tasks' classes and the scripted experts' by the tasks' names."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise UserError(f"Meta-World cannot be imported ({error}): pip install 'dsrl-torchrl[metaworld]'") from None
    return dict(ALL_V3_ENVIRONMENTS), dict(ENV_POLICY_MAP)
