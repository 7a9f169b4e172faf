"""ManiSkill as a TorchRL environment: states and pictures, batched, one class for CPU and GPU simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from tensordict import TensorDict
from tensordict.utils import NestedKey

from dsrl_torchrl.data.demonstration_transitions import step_penalty
from dsrl_torchrl.envs.cameras import Views, make_cameras
from dsrl_torchrl.envs.episodic import EpisodicEnv
from dsrl_torchrl.envs.maniskill_task import make_gym_env
from dsrl_torchrl.envs.serial_maniskill import SerialTasks
from dsrl_torchrl.errors import UserError

#: What each ``reward`` of ours asks of ManiSkill. A step penalty needs no reward of the task, so it is not computed.
REWARD_MODES = {"step_penalty": "none", "dense": "normalized_dense", "sparse": "sparse"}


class ManiSkillEnv(EpisodicEnv):
    """A ManiSkill task; entries, ends and seeds as in :class:`EpisodicEnv`, images if ``image_size`` says so.

    The observation is the task's flat state (metres, radians, m/s), ``action`` the controller's, in ``[-1, 1]`` for the
    delta controllers. Nothing is looped over envs and nothing leaves the simulation's device, so GPU simulation
    (``num_envs`` in the hundreds) is the same code. On the CPU several envs share one run of ManiSkill's Python, which
    costs four times the physics if every env has its own (:func:`~dsrl_torchrl.envs.batched_maniskill.batched_class`).

    How far a seed determines an episode: on the CPU, ``reset(seed=...)`` of all envs rebuilds the scenes (7 to 25 ms
    an env), and the same actions then give the same trajectory bit for bit, in any process and whatever ``num_envs``.
    An unseeded reset (4 to 8 ms), or a seeded one of some envs alone, is exact in its start only: PhysX keeps contact
    caches, so that later states differ slightly with what happened in earlier episodes. On the GPU, ManiSkill draws all
    starts of a reset from the *first* seed of a list (a list names the batch of starts, not each start), and
    contact-derived entries of a first observation may be those of the episode before.

    Args:
        env_id: ManiSkill task, e.g. ``PickCube-v1``.
        control_mode: the robot's controller.
        num_envs: ``N``.
        max_episode_steps: time limit in env steps; ``None`` keeps the task's own.
        reward: ``step_penalty`` is ``-1 + success_bonus * success`` (RLinf's ``use_step_penalty``: -1/0), ``dense``
            ManiSkill's reward normalised to about [0, 1], ``sparse`` +1 on success and -1 on failure. Where a failure
            ends the episode, ``step_penalty`` pays for failing early.
        success_bonus: see ``step_penalty``.
        terminate_on_success: ``False`` runs every episode to its time limit, for evaluation.
        sim_backend: ``auto`` (GPU if ``num_envs > 1`` and there is one), ``physx_cpu`` or ``physx_cuda``.
        batched: ``False`` steps several envs on the CPU one after the other: the same numbers, several times slower.
        device: where the tensors live; ``None`` leaves them on the simulation's device.
        seed: seeds the stream of starts; ``None`` takes fresh entropy.
        render_mode: ``rgb_array`` makes :meth:`render` return frames; needs a Vulkan device.
        env: a ready batched gym env in place of ``gym.make(env_id, ...)``; its controller, time limit and number of
            envs are then its own. One that resets itself hides the last observation and the success of an episode:
            ``ManiSkillVectorEnv(..., auto_reset=False)``.
        observation_key: name of the observation's entry.
        image_size: ``S`` adds an entry ``[3, S, S]`` for each of ``cameras``; ``None`` for state alone. Needs a Vulkan
            device, or Mesa >= 25 (docs/cameras.md).
        cameras: entry -> a camera of the task, or the options of a :class:`~dsrl_torchrl.envs.cameras.View` that move
            it; ``base_camera`` as ``pixels`` by default.
        state: what is in the observation: ``full``, or ``proprioception``, what a robot has beside its pictures
            (:func:`~dsrl_torchrl.envs.proprioception.hide_privileged_state`).

    Raises:
        UserError: unknown task, controller, reward or camera; missing assets; nothing to render with;
            GPU simulation without a GPU; an ``env`` that resets itself.
        NonFiniteError: in reset and step, if the simulation returns NaN or infinity.
    """

    def __init__(
        self,
        env_id: str = "PickCube-v1",
        control_mode: str = "pd_ee_delta_pos",
        num_envs: Annotated[int, Field(ge=1)] = 1,
        max_episode_steps: Annotated[int, Field(ge=1)] | None = None,
        reward: Literal["step_penalty", "dense", "sparse"] = "step_penalty",
        success_bonus: float = 1.0,
        terminate_on_success: bool = True,
        sim_backend: Literal["auto", "physx_cpu", "physx_cuda"] = "auto",
        batched: bool = True,
        device: torch.device | str | None = None,
        seed: int | None = None,
        render_mode: Literal["rgb_array"] | None = None,
        env: Any = None,
        observation_key: NestedKey = "observation",
        image_size: Annotated[int, Field(ge=8, le=1024)] | None = None,
        cameras: Views | None = None,
        state: Literal["full", "proprioception"] = "full",
    ) -> None:
        if reward not in REWARD_MODES:
            raise UserError(f"unknown reward {reward!r}; one of {', '.join(REWARD_MODES)}")
        self._cameras = make_cameras(image_size, cameras)
        if env is None:
            env = make_gym_env(
                env_id,
                control_mode=control_mode,
                num_envs=num_envs,
                max_episode_steps=max_episode_steps,
                reward_mode=REWARD_MODES[reward],
                sim_backend=sim_backend,
                batched=batched,
                render_mode=render_mode,
                cameras=self._cameras,
                state=state,
            )
        sim = env.unwrapped
        _check_reset_is_ours(env)
        super().__init__(
            num_envs=sim.num_envs,
            obs_dim=sim.single_observation_space.shape[-1],
            low=torch.as_tensor(sim.single_action_space.low),
            high=torch.as_tensor(sim.single_action_space.high),
            terminate_on_success=terminate_on_success,
            seed=seed,
            device=sim.device if device is None else device,
            observation_key=observation_key,
            images=None if self._cameras is None else self._cameras.shapes,
        )
        self._env, self._sim = env, sim
        self.is_closed = False  # EnvBase starts closed
        self._sim_device = torch.device(sim.device)
        self._forget_contacts: Callable[[list[int], int], None] | None = getattr(sim, "forget_contacts", None)
        if self._forget_contacts is None and not sim.gpu_sim_enabled:
            self._forget_contacts = SerialTasks([env]).forget_contacts  # ManiSkill's own task, which is one env
        self.env_id, self.control_mode, self.reward, self.success_bonus = env_id, control_mode, reward, success_bonus

    def __repr__(self) -> str:
        return f"ManiSkillEnv({self.env_id}, {self.control_mode}, num_envs={self.batch_size.numel()})"

    def _start(self, seeds: list[int], env_idx: torch.Tensor | None, asked: bool) -> tuple[torch.Tensor, torch.Tensor]:
        # ManiSkill's own unseeded resets draw from torch's global generator; ours are always seeded. It wants the whole
        # batch's seeds in a partial reset too: shorter lists break its generators.
        options: dict[str, Any] = {} if env_idx is None else {"env_idx": env_idx.to(self._sim_device)}
        if self._forget_contacts is not None:
            if asked and env_idx is None:
                options["reconfigure"] = True
            else:
                # PhysX reports the contacts of its last step: a cube that was held when the last episode ended would be
                # `is_grasped` in the first observation of this one. One step from any start forgets it.
                self._forget_contacts(list(range(len(seeds))) if env_idx is None else env_idx.tolist(), seeds[0])
        observation, info = self._env.reset(seed=seeds, options=options)
        return observation, self._success(info)

    def _advance(
        self, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        observation, reward, terminated, truncated, info = self._env.step(action.to(self._sim_device))
        success = self._success(info)
        if self.reward == "step_penalty":
            reward = step_penalty(success, self.success_bonus)
        return observation, success, reward, terminated, truncated

    def get_state(self) -> list[TensorDict]:
        """Simulation, controllers' targets, elapsed steps and seed of each env, which :meth:`set_state` takes."""
        rows: list[TensorDict] = []
        for sim in self._tasks():
            state = TensorDict(sim.get_state_dict(), [sim.num_envs]).clone()
            state["elapsed_steps"] = sim.elapsed_steps.clone()
            state["seed"] = torch.as_tensor(sim._episode_seed, dtype=torch.int64).clone()
            rows += state.unbind(0)
        return rows

    def set_state(self, states: Sequence[TensorDict]) -> None:
        """Puts env ``i`` into ``states[i]``, of whichever env of the same task that was.

        On the CPU the scenes are rebuilt (7 to 25 ms an env): without PhysX's old contacts, the same actions then give
        the same steps bit for bit.
        """
        if self._forget_contacts is not None:
            self._env.reset(seed=[int(state["seed"]) for state in states], options={"reconfigure": True})
        begin = 0
        for sim in self._tasks():
            state = TensorDict.stack(list(states[begin : begin + sim.num_envs]))
            begin += sim.num_envs
            sim.set_state_dict(state.exclude("elapsed_steps", "seed", "controller").to_dict())
            sim.agent.controller.reset()
            if "controller" in state:
                sim.agent.set_controller_state(state["controller"].clone().to_dict())
            sim._elapsed_steps[:] = state["elapsed_steps"]

    def _tasks(self) -> list[Any]:
        """ManiSkill's own: one for all envs, or one for each."""
        return [env.unwrapped for env in getattr(self._sim, "envs", [self._sim])]

    def _images(self, env_idx: torch.Tensor) -> Mapping[NestedKey, torch.Tensor]:
        assert self._cameras is not None
        return self._cameras.pictures(self._sim, env_idx)

    def _success(self, info: dict) -> torch.Tensor:
        """``[N]`` bool; False for a task that does not tell."""
        return info.get("success", torch.zeros(self.batch_size, dtype=torch.bool, device=self._sim_device))

    def render(self) -> torch.Tensor:
        """The current frame of each env, ``[N, height, width, 3]`` uint8; needs ``render_mode="rgb_array"``."""
        if self._sim.render_mode is None:
            raise UserError('render() needs ManiSkillEnv(render_mode="rgb_array")')
        return torch.as_tensor(self._env.render())

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Frees the simulation."""
        if not self.is_closed:
            self._env.close()
        super().close(raise_if_closed=raise_if_closed)


def _check_reset_is_ours(env: Any) -> None:
    while env is not None:
        if vars(env).get("auto_reset", False):
            raise UserError(f"{type(env).__name__} resets itself where an episode ends: give it auto_reset=False")
        env = vars(env).get("env", vars(env).get("_env"))
