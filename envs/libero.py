"""LIBERO as a TorchRL environment: state or pictures, several tasks' simulations in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from tensordict.utils import NestedKey

from dsrl_torchrl.data.demonstration_transitions import step_penalty
from dsrl_torchrl.envs.episodic import EpisodicEnv
from dsrl_torchrl.envs.libero_task import Simulation, find_task
from dsrl_torchrl.envs.mujoco_pictures import MujocoPictures, camera_names
from dsrl_torchrl.errors import UserError

#: Does nothing and holds the gripper open: what openpi and LeRobot execute while the objects settle.
WAIT = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
ACTION_DIM = 7
CAMERAS: Mapping[str, str] = {"main_images": "agentview"}
#: robosuite's collision meshes are in group 0.
HIDDEN = (0,)
#: Side of a video's frame, in pixels.
FRAME_SIZE = 256


class LiberoEnv(EpisodicEnv):
    """A LIBERO task with state observations and pictures; entries, ends and seeds as in :class:`EpisodicEnv`.

    ``action`` is ``[7]`` in [-1, 1] (``OSC_POSE``): a step of 5 cm and 0.5 rad for 1, and the gripper, -1 open and 1
    closed; 20 a second. ``success`` is LIBERO's goal predicate, which ends the episode.

    A seed determines an episode bit for bit: it chooses the recorded start (``seed`` modulo their number, so that 50
    seeds in a row are the suite's own 50 starts, each once) and the placement of the fixtures, which the recording does
    not hold. An episode that has ended is not simulated any further before its reset.

    The state ``proprioception`` is ``[8]``: position of the end effector (metres), its axis-angle (radians) and the two
    finger joints (metres): what RLinf, openpi and LeRobot call state. ``full`` appends for each object of interest of
    the task, in the order of its BDDL file, 9 numbers that no robot knows: its position (metres) and the first two
    columns of its rotation matrix (a rotation without jumps, https://arxiv.org/abs/1812.07035).

    Pictures show the end of a step. robosuite's own, like the robot's state, were taken at its beginning: they lag by
    a twentieth of a second.

    Args:
        env_id: number of the task in its suite.
        suite: ``libero_spatial``, ``libero_object``, ``libero_goal``, ``libero_10``, ``libero_90``.
        num_envs: ``N``; each takes 300 MB and some seconds to make.
        state: what the observation holds, see above.
        image_size: ``S`` adds what the cameras see, ``[3, S, S]`` each; ``None`` for state alone, without a renderer.
        cameras: entry -> camera: ``{main_images: agentview, wrist_images: robot0_eye_in_hand}`` are RLinf's names.
        rotate_images: by 180 degrees, as openpi and LeRobot do; ``False`` leaves them upside down, as they lie in
            LIBERO's own files.
        fast_rendering: pictures without shadows and multisampling, three times as fast without a GPU; ``False`` for
            policies that were trained on LIBERO's own.
        starts: ``suite`` takes the recorded ones, ``sampled`` draws new ones as LIBERO's BDDL file says.
        settling_steps: that pass, with the gripper open, before an episode begins: recorded starts hover.
        max_episode_steps: time limit in env steps; RLinf's for LIBERO-Spatial.
        reward: ``step_penalty`` is ``-1 + success_bonus * success`` (RLinf's ``use_step_penalty``: -1/0), ``sparse``
            LIBERO's own, 1 on success.
        success_bonus: see ``step_penalty``.
        terminate_on_success: ``False`` runs every episode to its time limit, for evaluation.
        device: where the tensors live; the simulation is on the CPU.
        seed: seeds the stream of starts; ``None`` takes fresh entropy.
        render_mode: ``rgb_array`` makes :meth:`render` return frames of 256 pixels.
        observation_key: name of the state's entry.

    Attributes:
        instruction: the task in words.
        task: what the suite has recorded of it.
        simulations: one for each env.

    Raises:
        UserError: LIBERO is not installed; an unknown suite, task or camera; nothing to render with.
        NonFiniteError: in reset and step, if the simulation returns NaN or infinity.
    """

    def __init__(
        self,
        env_id: Annotated[int, Field(ge=0)] = 0,
        suite: str = "libero_spatial",
        num_envs: Annotated[int, Field(ge=1)] = 1,
        state: Literal["full", "proprioception"] = "full",
        image_size: Annotated[int, Field(ge=8, le=2048)] | None = None,
        cameras: Mapping[str, str] = CAMERAS,
        rotate_images: bool = True,
        fast_rendering: bool = True,
        starts: Literal["suite", "sampled"] = "suite",
        settling_steps: Annotated[int, Field(ge=0)] = 10,
        max_episode_steps: Annotated[int, Field(ge=1)] = 240,
        reward: Literal["step_penalty", "sparse"] = "step_penalty",
        success_bonus: float = 1.0,
        terminate_on_success: bool = True,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        render_mode: Literal["rgb_array"] | None = None,
        observation_key: NestedKey = "observation",
    ) -> None:
        self.task = find_task(suite, env_id)
        cameras = {} if image_size is None else dict(cameras)
        self.simulations = [Simulation(self.task)]
        self._of_interest = self.simulations[0].objects_of_interest if state == "full" else []
        _check_cameras(cameras, camera_names(self.simulations[0].model))
        super().__init__(
            num_envs=num_envs,
            obs_dim=8 + 9 * len(self._of_interest),
            low=-torch.ones(ACTION_DIM),
            high=torch.ones(ACTION_DIM),
            terminate_on_success=terminate_on_success,
            seed=seed,
            device=device,
            observation_key=observation_key,
            images={entry: (3, image_size or 0, image_size or 0) for entry in cameras},
        )
        self.is_closed = False  # EnvBase starts closed
        self.simulations += [Simulation(self.task) for _ in range(1, num_envs)]
        self.suite, self.env_id, self.instruction = suite, env_id, self.task.instruction
        self.cameras, self.image_size, self.rotate_images = cameras, image_size, rotate_images
        self.fast_rendering, self.render_mode = fast_rendering, render_mode
        self.starts, self.settling_steps, self.max_episode_steps = starts, settling_steps, max_episode_steps
        self.reward, self.success_bonus = reward, success_bonus
        self._observation = np.zeros((num_envs, self.observation_spec[observation_key].shape[-1]), dtype=np.float32)
        self._success = np.zeros(num_envs, dtype=bool)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=bool)
        self._looked = np.zeros(num_envs, dtype=bool)  # since it has ended
        self._draw: dict[int, MujocoPictures] = {}  # by the size of the picture
        if image_size is not None:
            self._drawn(image_size)  # before the first episode, so that a machine without OpenGL says so at once

    def __repr__(self) -> str:
        return f"LiberoEnv({self.suite}, {self.env_id}, num_envs={self.batch_size.numel()})"

    def _start(self, seeds: list[int], env_idx: torch.Tensor | None, asked: bool) -> tuple[torch.Tensor, torch.Tensor]:
        for i in range(len(seeds)) if env_idx is None else env_idx.tolist():
            simulation = self.simulations[i]
            starts = self.task.starts
            simulation.reset(seeds[i], starts[seeds[i] % len(starts)] if self.starts == "suite" else None)
            for _ in range(self.settling_steps):
                simulation.step(WAIT)
            self._elapsed[i], self._ended[i], self._looked[i] = 0, False, False
            self._observe(i)
        return torch.from_numpy(self._observation), torch.from_numpy(self._success)

    def _advance(
        self, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        commands = action.detach().cpu().clamp(-1, 1).double().numpy()  # (N, 7)
        for i in np.flatnonzero(~self._ended):
            self.simulations[i].step(commands[i])
            self._elapsed[i] += 1
            self._observe(i)
        success = torch.from_numpy(self._success)
        truncated = torch.from_numpy(self._elapsed >= self.max_episode_steps)
        self._ended |= truncated.numpy() | (self._success & self.terminate_on_success)
        reward = step_penalty(success, self.success_bonus) if self.reward == "step_penalty" else success.float()
        return torch.from_numpy(self._observation), success, reward, success, truncated

    def _observe(self, i: int) -> None:
        simulation = self.simulations[i]
        parts = [simulation.robot_state()]
        for name in self._of_interest:
            position, rotation = simulation.pose(name)
            parts += [position, rotation[:, 0], rotation[:, 1]]
        self._observation[i] = np.concatenate(parts)
        self._success[i] = simulation.success()

    def _images(self, env_idx: torch.Tensor) -> dict[NestedKey, torch.Tensor]:
        chosen = env_idx.tolist()
        seen: dict[NestedKey, torch.Tensor] = {}
        for entry, camera in self.cameras.items():
            pictures = [self._last(entry, i) if self._looked[i] else self._look_at(i, camera) for i in chosen]
            seen[entry] = torch.stack(pictures)
        self._looked[chosen] = self._ended[chosen]
        return seen

    def _last(self, entry: NestedKey, i: int) -> torch.Tensor:
        return self._pictures[entry][i].cpu()

    def _look_at(self, i: int, camera: str) -> torch.Tensor:
        """``[3, S, S]`` uint8."""
        assert self.image_size is not None
        upright = self._render(i, camera, self.image_size)
        picture = upright[:, ::-1] if self.rotate_images else upright[::-1]  # robosuite's own are upside down
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))

    def _render(self, i: int, camera: str, size: int) -> np.ndarray:
        return self._drawn(size)(self.simulations[i].model, self.simulations[i].data, camera)

    def _drawn(self, size: int) -> MujocoPictures:
        if size not in self._draw:
            self._draw[size] = MujocoPictures(self.simulations[0].model, size, fast=self.fast_rendering, hidden=HIDDEN)
        return self._draw[size]

    def render(self) -> torch.Tensor:
        """The current frame of each env, ``[N, 256, 256, 3]`` uint8, upright; needs ``render_mode="rgb_array"``."""
        if self.render_mode is None:
            raise UserError('render() needs LiberoEnv(render_mode="rgb_array")')
        frames = [self._render(i, "agentview", FRAME_SIZE) for i in range(len(self.simulations))]
        return torch.from_numpy(np.stack(frames))

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Frees the simulations and the renderer."""
        if not self.is_closed:
            for draw in self._draw.values():
                draw.close()
            for simulation in self.simulations:
                simulation.close()
        super().close(raise_if_closed=raise_if_closed)


def _check_cameras(cameras: Mapping[str, str], known: Sequence[str]) -> None:
    for entry, camera in cameras.items():
        if camera not in known:
            raise UserError(f"cameras.{entry}: LIBERO has no camera {camera!r}, only {', '.join(known)}")
