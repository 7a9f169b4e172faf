"""Which cameras are looked through, when, and in how many drawings; on fakes."""

import pytest
import torch
from torchrl.envs import check_env_specs

from dsrl_torchrl.envs.cameras import make_cameras
from dsrl_torchrl.envs.maniskill import ManiSkillEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from tests.envs.fake_cameras import give_cameras
from tests.envs.fake_maniskill import FakeManiSkill

VIEWS = {"pixels": {}, "wrist": "hand_camera"}


def make_env(num_envs=4, limit=10, **kwargs):
    sim = give_cameras(FakeManiSkill(num_envs, limit), 8, "base_camera", "hand_camera", "unused")
    return ManiSkillEnv(env=sim, image_size=8, seed=0, **kwargs), sim


def red(pixels):
    return pixels[..., 0, 0, 0].int()


def test_specs():
    env, _ = make_env(cameras=VIEWS)
    check_env_specs(env)
    assert env.image_keys == ["pixels", "wrist"]
    for key in env.image_keys:
        spec = env.observation_spec[key]
        assert spec.shape == (4, 3, 8, 8) and spec.dtype is torch.uint8


def test_on_the_gpu_a_macro_step_draws_once_for_all_envs():
    env, sim = make_env(cameras=VIEWS)
    macro = make_macro_env(env, act_horizon=4, gamma=0.9)
    now = macro.reset()
    assert (sim.scene.drawn, sim.hidden) == (1, 1)
    assert (red(now["pixels"]) == (100 + 10 * sim.x).int()).all()
    after = macro.step(now.set("action", torch.full((4, 4, 1), 0.1)))["next"]
    assert sim.scene.drawn == 2 and not any(sim.scene.one_by_one)
    captured = {name: sensor.captured for name, sensor in sim._sensors.items()}
    assert captured == {"base_camera": 2, "hand_camera": 2, "unused": 0}
    assert (red(after["pixels"]) == (100 + 10 * sim.x).int()).all()


def test_on_the_cpu_only_the_asked_envs_are_drawn():
    env, sim = make_env(cameras=VIEWS)
    sim.gpu_sim_enabled = False
    now = env.reset()
    assert sim.scene.one_by_one == [1, 1, 1, 1]
    env.reset(now.clone().set("_reset", torch.tensor([[False], [True], [False], [True]])))
    assert sim.scene.one_by_one == [1, 2, 1, 2]
    assert sim._sensors["base_camera"].captured == sim._sensors["hand_camera"].captured == 6
    assert sim._sensors["unused"].captured == 0


def test_both_ways_see_the_same():
    (at_once, _), (one_by_one, sim) = make_env(), make_env()
    sim.gpu_sim_enabled = False
    a, b = at_once.reset(), one_by_one.reset()
    assert a["pixels"].shape == b["pixels"].shape == (4, 3, 8, 8)
    assert (red(a["pixels"]) == red(b["pixels"])).all() and a["pixels"].is_contiguous() and b["pixels"].is_contiguous()


@pytest.mark.parametrize(
    "views, message",
    [
        ({"pixels": {"fovy": 1.0}}, "cameras.pixels: unknown option fovy"),
        ({"pixels": {"fov": 4.0}}, r"cameras.pixels: fov should be less than 3.1, got 4.0"),
        ({"pixels": {"eye": [0, 0, 1]}}, "eye and target should be given together"),
        ({"pixels": {"eye": [0, 0, 1], "target": [0, 0, 0]}}, "should differ in x or y"),
        ({"pixels": {"eye": [0, 1], "target": [0, 0, 0]}}, "cameras.pixels: eye"),
        ({"pixels": {}, "again": {}}, r"one camera is needed for each entry, got \['base_camera', 'base_camera'\]"),
        ({}, "one camera is needed"),
    ],
)
def test_wrong_views_are_one_line(views, message):
    with pytest.raises(UserError, match=message) as raised:
        make_cameras(64, views)
    assert "\n" not in str(raised.value)


def test_cameras_need_a_size():
    assert make_cameras(None, None) is None
    with pytest.raises(UserError, match="need an image_size"):
        make_cameras(None, {"pixels": {}})
