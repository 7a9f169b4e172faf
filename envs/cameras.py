"""The cameras of a ManiSkill task: which of them are entries, where they stand, and what they see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor

from dsrl_torchrl.envs.batched_physics import BatchedPhysics
from dsrl_torchrl.envs.serial_maniskill import SerialTasks
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import Options, option, shown

Point = tuple[float, float, float]
Views = Mapping[str, str | Mapping[str, Any]]


class View(Options):
    """One entry's camera: one of the task's, which stands where the task puts it unless that is overridden."""

    camera: str = option("base_camera", "name of the task's camera", min_length=1)
    eye: Point | None = option(None, "where it stands, metres; z is up")
    target: Point | None = option(None, "the point in the middle of its picture, metres")
    fov: float | None = option(None, "vertical field of view, radians", gt=0, lt=3.1)

    @model_validator(mode="after")
    def _can_be_looked_from(self) -> View:
        if (self.eye is None) != (self.target is None):
            raise ValueError("eye and target should be given together")
        if self.eye is not None and self.target is not None and self.eye[:2] == self.target[:2]:
            raise ValueError(f"eye {self.eye} and target {self.target} should differ in x or y: 0.001 will do")
        return self


class Cameras:
    """The images of an env.

    Args:
        image_size: ``S``; pictures are uint8 ``[3, S, S]``.
        views: entry -> the name of a camera, or the options of a :class:`View`.

    Raises:
        UserError: options that are none, or two entries with one camera.
    """

    def __init__(self, image_size: int, views: Views) -> None:
        self.image_size = image_size
        self.views = {entry: _view(entry, options) for entry, options in views.items()}
        cameras = [view.camera for view in self.views.values()]
        if not cameras or len(set(cameras)) < len(cameras):
            raise UserError(f"cameras: one camera is needed for each entry, got {shown(cameras)}")

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Entry -> ``[3, S, S]``."""
        return {entry: (3, self.image_size, self.image_size) for entry in self.views}

    def sensor_configs(self) -> dict[str, Any]:
        """What ``gym.make`` of a ManiSkill task takes under this name."""
        from mani_skill.utils.sapien_utils import look_at

        configs: dict[str, Any] = {"width": self.image_size, "height": self.image_size}
        for view in self.views.values():
            own: dict[str, Any] = {} if view.fov is None else {"fov": view.fov}
            if view.eye is not None and view.target is not None:
                own["pose"] = look_at(view.eye, view.target).raw_pose[0].tolist()
            if own:
                configs[view.camera] = own
        return configs

    def pictures(self, sim: Any, env_idx: Tensor) -> dict[str, Tensor]:
        """What the envs ``env_idx [n]`` look like now: entry -> uint8 ``[n, 3, S, S]``.

        Args:
            sim: an unwrapped ManiSkill task, or several in line.
            env_idx: on any device.
        """
        if isinstance(sim, SerialTasks):
            alone = torch.zeros(1, dtype=torch.int64)
            each = [self.pictures(sim.envs[i].unwrapped, alone) for i in env_idx.tolist()]
            return {entry: torch.cat([seen[entry] for seen in each]) for entry in self.views}
        for actor in sim._hidden_objects:  # markers that only people see
            actor.hide_visual()
        on_gpu = sim.gpu_sim_enabled and not isinstance(sim.scene.px, BatchedPhysics)
        draw = _drawn_at_once if on_gpu else _drawn_one_by_one
        seen = draw(sim, {entry: sim._sensors[view.camera] for entry, view in self.views.items()}, env_idx)
        return {entry: picture.permute(0, 3, 1, 2).contiguous() for entry, picture in seen.items()}

    def check(self, env_id: str, sim: Any) -> None:
        """Raises :class:`UserError` if the task has not all of the cameras."""
        has = list((sim.envs[0].unwrapped if isinstance(sim, SerialTasks) else sim)._sensors)
        for entry, view in self.views.items():
            if view.camera not in has:
                raise UserError(f"cameras.{entry}.camera: {env_id} has no {view.camera!r}, it has {', '.join(has)}")


def make_cameras(image_size: int | None, views: Views | None) -> Cameras | None:
    """The task's ``base_camera`` as ``pixels`` unless there are ``views``; ``None`` without a size.

    Raises:
        UserError: views without a size, or see :class:`Cameras`.
    """
    if image_size is not None:
        return Cameras(image_size, {"pixels": {}} if views is None else views)
    if views is not None:
        raise UserError("cameras need an image_size, 64 for example")
    return None


def _view(entry: str, options: str | Mapping[str, Any]) -> View:
    options = {"camera": options} if isinstance(options, str) else options
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    try:
        return View(**given)
    except UserError as error:
        raise UserError(f"cameras.{entry}: {error}") from None


def _drawn_at_once(sim: Any, sensors: Mapping[str, Any], env_idx: Tensor) -> dict[str, Tensor]:
    """``[n, H, W, 3]`` of a simulation on the GPU: a call for each camera draws all envs, nothing leaves the device."""
    sim.scene.update_render(update_sensors=True, update_human_render_cameras=False)
    for sensor in sensors.values():
        sensor.capture()
    only = {"rgb": True, "depth": False, "position": False, "segmentation": False}
    return {entry: sensor.get_obs(**only)["rgb"][env_idx.to(sim.device)] for entry, sensor in sensors.items()}


def _drawn_one_by_one(sim: Any, sensors: Mapping[str, Any], env_idx: Tensor) -> dict[str, Tensor]:
    """The same of simulations on the CPU: each env has a scene of its own, which is drawn by itself."""
    seen: dict[str, list[Tensor]] = {entry: [] for entry in sensors}
    for env in env_idx.tolist():
        sim.scene.sub_scenes[env].update_render()
        for entry, sensor in sensors.items():
            camera = sensor.camera._render_cameras[env]
            camera.take_picture()
            color = sensor.config.shader_config.texture_transforms["Color"]
            seen[entry].append(color(torch.from_numpy(camera.get_picture("Color")))["rgb"])
    return {entry: torch.stack(pictures) for entry, pictures in seen.items()}
