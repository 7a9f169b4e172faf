"""The real simulation seen through cameras; skipped where nothing can render (docs/cameras.md says how a CPU can)."""

import json

import pytest
import torch

from dsrl_torchrl.data.readers.maniskill import read_maniskill
from dsrl_torchrl.envs.demonstrations import make_demonstrations
from dsrl_torchrl.envs.headless import rendering_available
from dsrl_torchrl.envs.maniskill import ManiSkillEnv
from dsrl_torchrl.errors import UserError

pytestmark = pytest.mark.simulator

pytest.importorskip("mani_skill")
CAN_RENDER, REASON = rendering_available()
renders = pytest.mark.skipif(not CAN_RENDER, reason=REASON)

NEAR = {"pixels": {"eye": [0.5, 0.25, 0.4], "target": [0.0, 0.0, 0.12], "fov": 0.8}}
SEEDS = [5, 6, 7]


def make_env(num_envs=1, **kwargs):
    return ManiSkillEnv("PickCube-v1", num_envs=num_envs, sim_backend="physx_cpu", **kwargs)


def play(env, seeds, actions):
    """Observations of ``actions [T, N, action_dim]``: entry -> ``[T + 1, N, ...]``."""
    now = env.reset(seed=seeds)
    seen = [now]
    for action in actions:
        now = env.step(now.clone().set("action", action))["next"]
        seen.append(now)
    env.close()
    return torch.stack([each.select("observation", *env.image_keys) for each in seen])


@pytest.fixture(scope="module")
def actions():
    return torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_proprioception_is_the_part_of_the_state_that_is_not_privileged(actions):
    whole = play(make_env(3), SEEDS, actions)["observation"]
    own = play(make_env(3, state="proprioception"), SEEDS, actions)["observation"]
    # Joint positions and velocities, is_grasped, pose of the gripper, goal; then what has to do with the cube.
    assert own.shape[-1] == 9 + 9 + 1 + 7 + 3
    assert torch.equal(own, whole[..., : own.shape[-1]])
    alone = play(make_env(2, state="proprioception", batched=False), SEEDS[:2], actions[:, :2])["observation"]
    assert torch.equal(alone, own[:, :2])


@pytest.mark.skipif(CAN_RENDER, reason="something can render here")
def test_without_a_renderer_pictures_are_refused_in_one_line():
    with pytest.raises(UserError, match="image_size=64: no Vulkan device") as raised:
        make_env(image_size=64)
    assert "\n" not in str(raised.value)


@renders
@pytest.mark.slow
def test_cameras_change_no_state_and_see_each_env_as_it_is_alone(actions):
    state = play(make_env(3), SEEDS, actions)["observation"]
    batch = play(make_env(3, image_size=32, cameras=NEAR), SEEDS, actions)
    assert batch["pixels"].shape == (4, 3, 3, 32, 32)
    assert torch.equal(batch["observation"], state)
    for i, seed in enumerate(SEEDS):
        alone = play(make_env(image_size=32, cameras=NEAR), [seed], actions[:, i : i + 1])
        assert (alone[:, 0] == batch[:, i]).all()
    in_line = play(make_env(2, image_size=32, cameras=NEAR, batched=False), SEEDS[:2], actions[:, :2])
    assert (in_line == batch[:, :2]).all()
    assert (batch["pixels"][1:] != batch["pixels"][:-1]).flatten(2).any(-1).all()  # the arm moves


@renders
def test_a_closer_camera_sees_more_of_the_cube_and_nobody_sees_the_goal():
    def pixels_of(colour, **kwargs):
        env = make_env(image_size=64, **kwargs)
        picture = env.reset(seed=[0])["pixels"][0].int()
        env.close()
        others = picture.sum(0) - picture[colour]
        return int((picture[colour] > 4 * others).sum())

    red, green = 0, 1
    assert pixels_of(red, cameras=NEAR) > 3 * pixels_of(red) > 0
    assert pixels_of(green, cameras=NEAR) == 0


@renders
def test_an_unknown_camera_is_one_line():
    for options in ({}, {"fov": 1.0}):
        with pytest.raises(UserError, match=r"PickCube-v1 has no 'side', it has base_camera"):
            make_env(image_size=32, cameras={"pixels": {"camera": "side", **options}})


@renders
@pytest.mark.slow
def test_a_recorded_picture_is_what_the_env_shows(tmp_path):
    options = {"image_size": 32, "cameras": NEAR, "state": "proprioception"}
    path = make_demonstrations(
        tmp_path / "t.h5", "PickCube-v1", "pd_ee_delta_pos", 1, 0, 0.25, 100, progress=False, processes=1, **options
    )
    (episode,) = read_maniskill(path, entries={"observation": "obs/state", "pixels": "obs/pixels"})
    (described,) = json.loads(path.with_suffix(".json").read_text())["episodes"]
    seen = play(make_env(max_episode_steps=100, **options), [described["episode_seed"]], episode.action.unsqueeze(1))
    assert torch.equal(seen["observation"][:, 0], episode.observations["observation"])
    assert torch.equal(seen["pixels"][:, 0], episode.observations["pixels"])


@renders
def test_frames_of_a_video_beside_pictures():
    env = make_env(image_size=32, cameras=NEAR, render_mode="rgb_array")
    before = env.reset(seed=[0])["pixels"]
    frame = env.render()
    assert frame.shape == (1, 512, 512, 3) and frame.dtype is torch.uint8
    assert ((frame[..., 1].int() > 100) & (frame[..., 0] < 50) & (frame[..., 2] < 50)).any()  # people see the goal
    assert torch.equal(env._images(torch.zeros(1, dtype=torch.int64))["pixels"], before)  # the policy doesn't
    env.close()
