"""A ManiSkill task with N envs on the CPU: its batched Python, written for the GPU, over N CPU simulations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl_torchrl.envs.batched_physics import BatchedPhysics


def batched_class(task: type) -> type:
    """Of a ManiSkill task (a ``BaseEnv``) the class that takes ``num_envs`` with ``sim_backend="physx_cpu"``.

    Observations, rewards and flags are those of N envs with ``num_envs=1``, bit for bit, at a fraction of the time:
    what costs time there is not the physics but the Python and torch around it, which here runs once for all envs. Each
    env starts from its own seed as it would alone, while ManiSkill's GPU simulation draws all starts from the first.

    Not for tasks that rebuild their scene at every reset, nor for ``render()``; cameras are looked through one by one
    (:class:`~dsrl_torchrl.envs.cameras.Cameras`).
    """
    import sapien
    import sapien.render
    from mani_skill.envs.scene import ManiSkillScene

    class BatchedScene(ManiSkillScene):
        #: Envs that are being reset, ``[N]`` bool; ManiSkill sets its own mask to all before it resets controllers.
        resetting: Tensor | None = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.px = BatchedPhysics([scene.physx_system for scene in self.sub_scenes])
            self.gpu_sim_enabled = True

        @property
        def _reset_mask(self) -> Tensor:
            return self._mask if self.resetting is None else self.resetting

        @_reset_mask.setter
        def _reset_mask(self, mask: Tensor) -> None:
            self._mask = mask

        @contextmanager
        def only(self, envs: Any) -> Iterator[None]:
            """Within it, what is set is set in these envs alone."""
            before = self.resetting
            self.resetting = torch.zeros(self.num_envs, dtype=torch.bool)
            self.resetting[envs] = True
            try:
                yield
            finally:
                self.resetting = before

        def create_actor_builder(self) -> Any:
            builder = super().create_actor_builder()
            # One ground is enough for all envs where they share a simulation; here each has its own.
            builder.set_allow_overlapping_plane_collisions(True)
            return builder

        def _setup(self, enable_gpu: bool) -> None:
            self.px.place(self)
            super()._setup(enable_gpu=False)
            self._gpu_sim_initialized = True

        def _gpu_apply_all(self) -> None:
            """Nothing: what is set is applied at once."""

        def _gpu_fetch_all(self) -> None:
            self.px.forget()

    class BatchedTask(task):
        @property
        def backend(self) -> Any:
            return self._backend

        @backend.setter
        def backend(self, info: Any) -> None:
            # By its own name ManiSkill would refuse more than one env.
            self._backend = dataclasses.replace(info, sim_backend="physx_cpu_batched")

        def _setup_scene(self) -> None:
            self._set_scene_config()
            self.scene = BatchedScene(
                [sapien.Scene(self._systems()) for _ in range(self.num_envs)],
                sim_config=self.sim_config,
                device=self.device,
                backend=self.backend,
            )
            self.scene.px.timestep = 1.0 / self._sim_freq

        def _systems(self) -> list[Any]:
            device = self.backend.render_device
            return [sapien.physx.PhysxCpuSystem(), *([] if device is None else [sapien.render.RenderSystem(device)])]

        def _load_scene(self, options: dict) -> None:
            super()._load_scene(options)
            if self.scene.can_render():
                # On the GPU, ManiSkill hides a marker by moving it far away at every picture.
                for entity in (entity for marker in self._hidden_objects for entity in marker._objs):
                    entity.find_component_by_type(sapien.render.RenderBodyComponent).visibility = 0
                self._hidden_objects: list[Any] = []

        def _load_agent(self, *args: Any, **kwargs: Any) -> None:
            super()._load_agent(*args, **kwargs)
            for controller in _controllers(self.agent):
                if hasattr(controller, "kinematics"):
                    controller.kinematics.compute_ik = BatchedKinematics(controller)

        def forget_contacts(self, envs: Sequence[int], seed: int) -> None:
            """Moves some envs to some start, and their physics one step on: what touched then no longer does."""
            with torch.random.fork_rng(devices=[]), self.scene.only(envs):
                torch.default_generator.manual_seed(seed)
                super()._initialize_episode(torch.tensor(envs), {})
                self.scene.px.step(envs)

        def reset(self, seed: Any = None, options: dict | None = None) -> Any:
            envs = (options or {}).get("env_idx")
            if envs is None:
                return super().reset(seed=seed, options=options)
            with self.scene.only(envs):
                return super().reset(seed=seed, options=options)

        def _initialize_episode(self, env_idx: Tensor, options: dict) -> None:
            for env in env_idx.tolist():
                # What ManiSkill does for one env: its generators, then its task. (torch.manual_seed would seed a GPU
                # too, and takes 5 ms where there is none.)
                torch.default_generator.manual_seed(int(self._episode_seed[env]))
                self._episode_rng = self._batched_episode_rng[env]
                with self.scene.only(env):
                    super()._initialize_episode(torch.tensor([env]), options)

        def _step_action(self, action: Tensor) -> Tensor:
            if torch.isnan(action).any():
                raise ValueError(f"Action cannot be NaN. Environment received: {action}")
            return super()._step_action(action)

    BatchedTask.__name__ = BatchedTask.__qualname__ = f"Batched{task.__name__}"
    return BatchedTask


class BatchedKinematics:
    """Inverse kinematics of an end-effector controller, env by env with the solver that one CPU env has.

    In place of ``Kinematics.compute_ik`` of ManiSkill, whose arguments it takes.
    """

    def __init__(self, controller: Any) -> None:
        self._controller, self._kinematics = controller, controller.kinematics
        self._position_only = controller.single_action_space.shape == (3,)
        self._joints = self._kinematics.pmodel_active_joint_indices.numpy()
        self._controlled = self._kinematics.pmodel_controlled_joint_indices.numpy()

    def __call__(self, pose: Any, q0: Tensor, current_pose: Any = None, **_: Any) -> Tensor:
        """Joint targets ``[N, controlled joints]``; where there is no solution, the joints' present positions."""
        import sapien

        if isinstance(pose, Tensor):  # an action, which the GPU's solver takes as it is
            action = pose[:, :3] if self._position_only else pose
            pose = self._controller.compute_target_pose(current_pose, action)
        kinematics, found = self._kinematics, self._controller._start_qpos.clone()
        starts: np.ndarray = q0.numpy()[:, self._joints]
        for env, target in enumerate(pose.raw_pose.numpy()):
            joints, solved, _ = kinematics.pmodel.compute_inverse_kinematics(
                kinematics.end_link_idx,
                sapien.Pose(target[:3], target[3:]),
                initial_qpos=starts[env],
                active_qmask=kinematics.qmask,
                max_iterations=100,  # ManiSkill's
            )
            if solved:
                found[env] = torch.from_numpy(joints[self._controlled])
        return found


def _controllers(agent: Any) -> Iterator[Any]:
    for one in getattr(agent, "agents", None) or [agent]:
        controller = one.controller
        yield from getattr(controller, "controllers", {"": controller}).values()
