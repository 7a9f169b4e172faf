"""Cameras of a fake ManiSkill task, on the GPU and on the CPU: every pixel is the env's ``x`` and a count."""

from __future__ import annotations

from types import SimpleNamespace

import torch


class FakeCamera:
    """One camera in each env; red is ``100 + 10 x``, green the number of the drawing."""

    def __init__(self, sim, size: int, camera: str) -> None:
        self.sim, self.size, self.name, self.captured = sim, size, camera, 0
        transforms = {"Color": lambda data: {"rgb": data[..., :3]}}
        self.config = SimpleNamespace(shader_config=SimpleNamespace(texture_transforms=transforms))
        alone = [SimpleNamespace(take_picture=self.capture, get_picture=self._alone(i)) for i in range(sim.num_envs)]
        self.camera = SimpleNamespace(_render_cameras=alone)

    def capture(self) -> None:
        assert self.sim.scene.drawn > 0  # the renderer knows where things are
        self.captured += 1

    def get_obs(self, rgb, depth, position, segmentation):
        assert rgb and not (depth or position or segmentation)
        picture = torch.zeros(self.sim.num_envs, self.size, self.size, 3, dtype=torch.uint8)
        picture[..., 0] = (100 + 10 * self.sim.x)[:, None, None]
        picture[..., 1] = self.captured
        return {"rgb": picture}

    def _alone(self, env):
        def picture(name):
            assert name == "Color"
            rgb = self.get_obs(True, False, False, False)["rgb"][env]
            return torch.cat([rgb, torch.full_like(rgb[..., :1], 255)], -1).numpy()

        return picture


class FakeScene:
    """What is drawn is counted: all envs at once, or one by one."""

    def __init__(self, num_envs: int) -> None:
        self.px, self.drawn, self.one_by_one = None, 0, [0] * num_envs
        self.sub_scenes = [SimpleNamespace(update_render=lambda env=env: self._one(env)) for env in range(num_envs)]

    def update_render(self, update_sensors, update_human_render_cameras) -> None:
        assert update_sensors and not update_human_render_cameras
        self.drawn += 1

    def _one(self, env: int) -> None:
        self.drawn += 1
        self.one_by_one[env] += 1


def give_cameras(sim, size: int, *names: str):
    """Gives a :class:`FakeManiSkill` cameras."""
    sim.hidden = 0

    def hide() -> None:
        sim.hidden += 1

    sim._hidden_objects = [SimpleNamespace(hide_visual=hide)]
    sim.scene = FakeScene(sim.num_envs)
    sim._sensors = {name: FakeCamera(sim, size, name) for name in names}
    return sim
