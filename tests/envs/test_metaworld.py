"""Meta-World behind our interface: its own episodes, bit for bit, and pictures of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from dsrl_torchrl.data.readers.maniskill import read_maniskill
from dsrl_torchrl.envs import metaworld as module
from dsrl_torchrl.envs.metaworld import MetaWorldEnv, import_metaworld
from dsrl_torchrl.envs.metaworld_demonstrations import make_metaworld_demonstrations
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import make_macro_env

pytest.importorskip("metaworld")
pytestmark = pytest.mark.simulator

WITH_PICTURES = {"observation": "obs/state", "pixels": "obs/pixels"}


def gl_works() -> bool:
    try:
        MetaWorldEnv("reach-v3", image_size=16).close()
    except UserError:
        return False
    return True


needs_gl = pytest.mark.skipif(not gl_works(), reason="no OpenGL")


@pytest.fixture
def env(request):
    made = MetaWorldEnv(**({"env_id": "push-v3", "max_episode_steps": 30} | getattr(request, "param", {})))
    yield made
    made.close()


def play(env, seed, length=20):
    """Observations of random actions, which depend on the seed alone."""
    generator = torch.Generator().manual_seed(0)
    now = env.reset(seed=seed)
    seen = [now]
    for _ in range(length):
        action = torch.rand(*env.action_spec.shape[1:], generator=generator) * 2 - 1
        now = env.step(now.set("action", action.expand(env.action_spec.shape)))["next"]
        seen.append(now)
    return torch.stack([td["observation"] for td in seen])


@pytest.mark.parametrize("env", [{"num_envs": 2}, {"num_envs": 2, "state": "proprioception"}], indirect=True)
def test_specs(env):
    check_env_specs(env, seed=0)


def test_a_seed_is_an_episode_whatever_happened_before(env):
    first = play(env, [3])
    play(env, [4], 7)
    several = MetaWorldEnv("push-v3", num_envs=2)
    assert torch.equal(play(env, [3]), first)
    assert torch.equal(play(several, [9, 3])[:, 1:], first)
    several.close()


def test_the_episode_is_metaworlds_own_with_the_goal_observed(env):
    """By the class that its benchmarks are made of; without the goal, nothing but luck solves a task."""
    from metaworld import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    theirs = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE["push-v3-goal-observable"]()
    theirs._freeze_rand_vec, theirs.seeded_rand_vec = False, True
    theirs.seed(5)
    observation, _ = theirs.reset()
    now = env.reset(seed=[5])
    for _ in range(5):
        np.testing.assert_array_equal(env.full_state[0], observation)
        assert np.abs(observation[-3:]).max() > 0.01
        action = env.rand_action(now.clone())["action"]
        observation = theirs.step(action[0].numpy())[0]
        now = env.step(now.set("action", action))["next"]
    theirs.close()


def test_partial_reset_and_both_ends():
    env = MetaWorldEnv("reach-v3", num_envs=2, max_episode_steps=3, seed=0)
    now = env.reset(seed=[1, 2])
    for _ in range(3):
        now = env.step(now.set("action", torch.zeros(2, 4)))["next"]
    assert now["truncated"].all() and not now["terminated"].any() and now["reward"].eq(-1).all()
    again = env.reset(now.clone().set("_reset", torch.tensor([[True], [False]])), seed=[1])
    assert torch.equal(again["observation"][1], now["observation"][1])
    assert torch.equal(again["observation"][0], env.reset(seed=[1, 7])["observation"][0])
    env.close()


def test_macro_steps_go_on_beyond_metaworlds_own_limit():
    env = MetaWorldEnv("reach-v3", max_episode_steps=505, terminate_on_success=False)
    macro = make_macro_env(env, act_horizon=100, gamma=1.0)
    chunk = torch.zeros(1, 100, 4)
    rollout = macro.rollout(7, lambda td: td.set("action", chunk))
    assert rollout["next", "chunk_steps"].sum() == 505
    env.close()


def test_an_expert_ends_in_success_and_the_reward_is_the_step_penalty():
    env = MetaWorldEnv("reach-v3", max_episode_steps=200)
    expert = import_metaworld()[1]["reach-v3"]()
    now, rewards = env.reset(seed=[0]), []
    while not now["done"].any():
        action = torch.from_numpy(expert.get_action(env.full_state[0]).astype(np.float32))
        now = env.step(now.set("action", action.unsqueeze(0)))["next"]
        rewards.append(now["reward"].item())
    assert now["success"].all() and now["terminated"].all() and not now["truncated"].any()
    assert rewards == [-1.0] * (len(rewards) - 1) + [0.0]
    env.close()


@needs_gl
@pytest.mark.parametrize("env", [{"num_envs": 2, "image_size": 32}], indirect=True)
def test_pictures_show_the_present_state_of_the_envs_asked_for(env):
    check_env_specs(env, seed=0)
    one, other = env.reset(seed=[0, 1])["pixels"]
    swapped = env.reset(seed=[1, 0])["pixels"]
    assert torch.equal(swapped, torch.stack([other, one])) and not torch.equal(one, other)
    now = env.step(env.rand_action(env.reset(seed=[0, 1])))["next"]
    assert torch.equal(env._images(torch.tensor([1]))["pixels"][0], now["pixels"][1])


@needs_gl
@pytest.mark.parametrize("name", ["push-v3", "drawer-open-v3", "assembly-v3"])
def test_the_first_picture_shows_the_start_and_changes_nothing(name):
    """What a reset moves without a physics step: goals, and furniture that is moved by its model."""
    import mujoco

    env, blind = MetaWorldEnv(name, image_size=32), MetaWorldEnv(name)
    now, unseen = env.reset(seed=[3]), blind.reset(seed=[3])
    assert torch.equal(now["observation"], unseen["observation"])
    torch.manual_seed(0)
    for _ in range(5):
        action = 2 * torch.rand(1, 4) - 1
        now, unseen = (one.step(td.set("action", action))["next"] for one, td in ((env, now), (blind, unseen)))
        assert torch.equal(now["observation"], unseen["observation"])
    first, task = env.reset(seed=[4])["pixels"], env._tasks[0]
    mujoco.mj_forward(task.model, task.data)
    assert torch.equal(env._images(torch.tensor([0]))["pixels"], first)
    env.close()
    blind.close()


@needs_gl
@pytest.mark.parametrize("camera", ["corner4", "topview"])
def test_pictures_are_upright(camera):
    """The hand goes up: what changes is, on the whole, higher than before. From above: further from the robot."""
    env = MetaWorldEnv("reach-v3", image_size=64, cameras={"pixels": camera})
    now = env.reset(seed=[0])
    heights = []
    for _ in range(2):
        red = now["pixels"][0].float()
        arm = (red[0] > 1.6 * red[1]) & (red[0] > 90)  # the robot is red
        heights.append(arm.nonzero()[:, 0].float().mean())
        for _ in range(15):
            action = torch.tensor([[0.0, 0.0, 1.0, 0.0]] if camera == "corner4" else [[0.0, 1.0, 0.0, 0.0]])
            now = env.step(now.set("action", action))["next"]
    assert heights[1] < heights[0]
    env.close()


def test_mistakes_are_one_line(monkeypatch):
    with pytest.raises(UserError, match="unknown Meta-World task 'push'; near it: push-v3"):
        MetaWorldEnv("push")
    with pytest.raises(UserError, match="has no camera 'front'; it has topview, corner"):
        MetaWorldEnv("push-v3", image_size=16, cameras={"pixels": "front"})
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setitem(__import__("sys").modules, "mujoco.osmesa", None)
    with pytest.raises(UserError, match="OpenGL by osmesa fails"):
        MetaWorldEnv("push-v3", image_size=16)
    monkeypatch.setitem(__import__("sys").modules, "metaworld.env_dict", None)
    module.import_metaworld.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'dsrl-torchrl\[metaworld\]'"):
        MetaWorldEnv("push-v3")


def test_demonstrations_are_the_same_bytes_and_hold_the_noise(tmp_path):
    paths = [
        make_metaworld_demonstrations(
            tmp_path / f"{name}.h5", "reach-v3", 2, seed=1, action_noise=noise, progress=False
        )
        for name, noise in (("a", 0.5), ("b", 0.5), ("c", 0.0))
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()
    assert paths[0].with_suffix(".json").read_bytes() == paths[1].with_suffix(".json").read_bytes()
    seeds = [e["episode_seed"] for e in json.loads(paths[0].with_suffix(".json").read_text())["episodes"]]
    env = MetaWorldEnv("reach-v3")
    for episode, seed in zip(read_maniskill(paths[0], action_dim=4), seeds, strict=True):
        assert episode.success[-1] and not episode.success[:-1].any()
        now = env.reset(seed=[seed])
        for action, observation in zip(episode.action, episode.observations["observation"][1:], strict=True):
            now = env.step(now.set("action", action.unsqueeze(0)))["next"]
            assert torch.equal(now["observation"][0], observation)
    env.close()


@needs_gl
def test_demonstrations_hold_the_pictures(tmp_path):
    path = make_metaworld_demonstrations(
        tmp_path / "a.h5", "reach-v3", 1, action_noise=0.0, state="proprioception", image_size=16, progress=False
    )
    (episode,) = read_maniskill(path, entries=WITH_PICTURES, shapes={"pixels": (3, 16, 16), "observation": (4,)})
    pixels = episode.observations["pixels"]
    assert pixels.dtype == torch.uint8 and (pixels[0] != pixels[-1]).any()


@pytest.mark.parametrize("name", ["assembly-v3", "door-open-v3", "peg-insert-side-v3", "stick-pull-v3"])
def test_tasks_of_every_kind_repeat(name):
    env = MetaWorldEnv(name)
    first = play(env, [3], 10)
    play(env, [4], 5)
    assert torch.equal(play(env, [3], 10), first) and torch.isfinite(first).all()
    env.close()
