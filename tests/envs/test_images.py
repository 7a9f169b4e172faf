"""Images of an episodic env: what they show, and when they are looked at."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import StepCounter, TransformedEnv, check_env_specs

from dsrl_torchrl.data.readers.maniskill import read_maniskill
from dsrl_torchrl.envs.toy import PointReachEnv, make_toy_demonstrations
from dsrl_torchrl.latent_env.macro_step import make_macro_env


class Counting(PointReachEnv):
    """Counts the pictures it takes."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, image_size=16, **kwargs)
        self.taken = 0

    def _images(self, env_idx):
        self.taken += len(env_idx)
        return super()._images(env_idx)


def position_seen(pixels: torch.Tensor) -> torch.Tensor:
    """The red square's middle ``[*B, 2]``."""
    red = pixels[..., 0, :, :].float()
    size = red.shape[-1]
    centres = (torch.arange(size) + 0.5) / size * 2 - 1
    x = (red.sum(-2) * centres).sum(-1) / red.sum((-1, -2))
    y = (red.sum(-1) * centres.flip(0)).sum(-1) / red.sum((-1, -2))
    return torch.stack([x, y], -1)


def test_the_picture_shows_the_state():
    env = PointReachEnv(num_envs=64, image_size=32, seed=0)
    check_env_specs(env, seed=0)
    seen = env.reset()
    inside = seen["observation"].abs().amax(-1) < 0.8  # the square is cut at the edge of the world
    torch.testing.assert_close(position_seen(seen["pixels"])[inside], seen["observation"][inside], atol=0.01, rtol=0)


def test_a_macro_step_looks_once_at_its_end():
    env = Counting(num_envs=3, seed=0)
    macro = make_macro_env(env, act_horizon=4, gamma=0.9)
    now = macro.reset()
    assert env.taken == 3
    after = macro.step(now.set("action", torch.full((3, 4, 2), 0.01)))["next"]
    assert env.taken == 6
    torch.testing.assert_close(after["pixels"], env._images(torch.arange(3))["pixels"])
    assert not env.skip_images


@pytest.mark.parametrize("limit", [2, 4, 5])
def test_what_a_macro_step_shows_is_what_every_step_showed(limit):
    """The same episodes, looked at always and at their ends alone: ends inside of a chunk too, at several steps."""
    lazy, eager = (PointReachEnv(num_envs=16, image_size=16, max_episode_steps=limit, seed=0) for _ in range(2))
    a = make_macro_env(lazy, act_horizon=4, gamma=0.9)
    b = make_macro_env(eager, act_horizon=4, gamma=0.9)
    b.transform[-1].skip_images = False
    torch.manual_seed(0)
    now, same = a.reset(seed=list(range(16))), b.reset(seed=list(range(16)))
    for _ in range(2):
        action = (-4 * now["observation"].unsqueeze(-2) + torch.randn(16, 4, 2)).clamp(-1, 1)
        now, same = (env.step(td.set("action", action))["next"] for env, td in ((a, now), (b, same)))
        assert (now == same).all()
        done = now["done"]
        if done.any():
            now, same = (env.reset(td.select("done").set("_reset", done.clone())) for env, td in ((a, now), (b, same)))
            assert (now == same).all()


def test_a_history_of_images_is_one_of_primitive_steps():
    env = Counting(num_envs=1, seed=0)
    macro = make_macro_env(env, act_horizon=3, gamma=0.9, obs_horizon=2, history_keys=["pixels", "observation"])
    now = macro.reset()
    after = macro.step(now.set("action", torch.ones(1, 3, 2)))["next"]
    older, newer = position_seen(after["pixels"].unflatten(1, (2, 3))).unbind(1)
    seen = after["observation"].unflatten(1, (2, 2))
    torch.testing.assert_close(torch.stack([older, newer], 1), seen.clamp(-0.9, 0.9), atol=0.08, rtol=0)
    assert (older - newer).abs().max() > 0.05


def test_the_end_that_a_transform_makes_is_looked_at():
    """A time limit by TorchRL's StepCounter, of which the env knows nothing: what is bootstrapped from is not stale."""
    env = PointReachEnv(num_envs=4, image_size=32, terminate_on_success=False, seed=0)
    macro = make_macro_env(TransformedEnv(env, StepCounter(max_steps=2)), act_horizon=4, gamma=0.9)
    now = macro.reset()
    after = macro.step(now.set("action", torch.full((4, 4, 2), 0.9)))["next"]
    assert after["truncated"].all() and (after["chunk_steps"] == 2).all()
    inside = after["observation"].abs().amax(-1) < 0.8
    torch.testing.assert_close(position_seen(after["pixels"])[inside], after["observation"][inside], atol=0.01, rtol=0)


def test_only_the_envs_that_are_reset_are_looked_at():
    env = Counting(num_envs=3, seed=0)
    now = env.reset()
    mask = torch.tensor([[True], [False], [False]])
    again = env.reset(now.clone().set("_reset", mask))
    assert env.taken == 4
    assert (again["pixels"][1:] == now["pixels"][1:]).all()
    assert (again["pixels"][0] != now["pixels"][0]).any()


def test_demonstrations_hold_the_pictures(tmp_path):
    path = make_toy_demonstrations(tmp_path / "trajectory.h5", 3, image_size=16, progress=False)
    entries = {"observation": "obs/state", "pixels": "obs/pixels"}
    for episode in read_maniskill(path, entries=entries):
        pixels, state = episode.observations["pixels"], episode.observations["observation"]
        assert pixels.shape == (len(episode) + 1, 3, 16, 16) and pixels.dtype == torch.uint8
        inside = state.abs().amax(-1) < 0.8
        torch.testing.assert_close(position_seen(pixels)[inside], state[inside], atol=0.02, rtol=0)
