"""A state that is gone back to, in another env and after other episodes, goes on bit for bit as it did."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.envs.maniskill import ManiSkillEnv
from dsrl_torchrl.envs.metaworld import MetaWorldEnv
from dsrl_torchrl.envs.toy import PointReachEnv


def make_toy():
    return PointReachEnv(3, goal=None, max_episode_steps=25)


def make_maniskill(num_envs=3, **options):
    return ManiSkillEnv("PickCube-v1", num_envs=num_envs, max_episode_steps=25, **options)


def make_metaworld():
    pytest.importorskip("metaworld")
    return MetaWorldEnv("drawer-open-v3", num_envs=3, max_episode_steps=25, reward="dense")


def go_on(env, actions):
    """``[N, T]`` entries of ``actions`` ``[T, A]``, the same in every env."""
    td, steps = env.fake_tensordict(), []
    for action in actions:
        td["action"] = action.expand(*env.batch_size, -1).clone()
        steps.append(env._step(td).clone())
    return torch.stack(steps, 1)


@pytest.mark.parametrize(
    "make",
    [
        make_toy,
        pytest.param(make_maniskill, marks=pytest.mark.simulator),
        pytest.param(
            lambda: make_maniskill(2, batched=False, control_mode="pd_ee_target_delta_pos"), marks=pytest.mark.simulator
        ),
        pytest.param(make_metaworld, marks=pytest.mark.simulator),
    ],
    ids=["toy", "maniskill", "serial, with a controller's targets", "metaworld"],
)
def test_states_are_restored_exactly(make):
    torch.manual_seed(0)
    env = make()
    n, size = env.batch_size.numel(), env.action_spec.shape[-1]
    env.reset(seed=list(range(n)))
    go_on(env, torch.rand(15, size) * 2 - 1)
    states, actions = env.get_state(), torch.rand(12, size) * 2 - 1
    env.set_state(states)
    first = go_on(env, actions)
    # The time limit is part of a state: 15 of its 25 steps were over.
    assert first["truncated"][:, 9].all() and not first["truncated"][:, 8].any()
    env.reset(seed=[90 + i for i in range(n)])
    env.set_state(states[::-1])
    assert (go_on(env, actions).flip(0) == first).all()
    env.set_state([states[-1]] * n)
    assert (go_on(env, actions) == first[[-1] * n]).all()
    env.close()


@pytest.mark.simulator
def test_metaworlds_restored_states_go_on_as_if_nothing_had_been_restored():
    torch.manual_seed(0)
    env = make_metaworld()
    env.reset(seed=[1, 2, 3])
    go_on(env, torch.rand(5, 4) * 2 - 1)
    states, actions = env.get_state(), torch.rand(8, 4) * 2 - 1
    unbroken = go_on(env, actions)
    env.reset(seed=[4, 5, 6])
    env.set_state(states)
    assert (go_on(env, actions) == unbroken).all()
    env.close()
