"""robomimic's tasks: DPPO's observations and limits, episodes by their seed. Needs robosuite, which isn't in `dev`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchrl.envs import check_env_specs

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.envs.robomimic import TASKS, RobomimicEnv
from dsrl_torchrl.errors import UserError


def play(env, seed, length=5):
    generator = torch.Generator().manual_seed(0)
    now = env.reset(seed=seed)
    seen = [now["observation"]]
    for _ in range(length):
        now = env.step(now.set("action", torch.rand(env.action_spec.shape, generator=generator) * 2 - 1))["next"]
        seen.append(now["observation"])
    return torch.stack(seen)


@pytest.mark.simulator
@pytest.mark.parametrize(
    ("name", "sizes"), [("lift", (19, 7)), ("can", (23, 7)), ("square", (23, 7)), ("transport", (59, 14))]
)
def test_the_task_is_dppos_and_a_seed_is_an_episode(name, sizes):
    pytest.importorskip("robosuite")
    env, other = RobomimicEnv(name), RobomimicEnv(name)
    check_env_specs(env, seed=0)
    assert (env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]) == sizes
    first = play(env, [3])
    play(env, [4], 3)
    np.random.seed(1)
    after = np.random.random()
    np.random.seed(1)
    assert torch.equal(play(env, [3]), first) and torch.equal(play(other, [3]), first)
    assert np.random.random() == after
    assert env.max_episode_steps == TASKS[name].max_episode_steps
    env.close()
    other.close()


@pytest.mark.simulator
def test_the_state_in_the_order_of_robomimics_own_checkpoints():
    pytest.importorskip("robosuite")
    dppo, own = (
        RobomimicEnv("lift", state_order=order).reset(seed=[3])["observation"] for order in ("dppo", "robomimic")
    )
    assert torch.equal(torch.cat([dppo[:, 9:], dppo[:, :9]], -1), own)


def test_a_checkpoint_of_robomimic_wants_its_own_order():
    words = ["suite=robomimic", "task=can", "base_policy=robomimic_diffusion", "base_policy.load.path=a.pth"]
    with pytest.raises(UserError, match=r"read the objects first: set task.env.state_order=robomimic"):
        compose(words)
    compose([*words, "task.env.state_order=robomimic"])
    compose([*words, "base_policy.load.entries={object: observation}"])


def test_the_suite_and_its_mistakes(monkeypatch):
    words = ["suite=robomimic", "base_policy=load", "base_policy.load._target_=builtins.dict"]
    assert compose([*words, "task=can"]).task.env["env_id"] == "can"
    with pytest.raises(UserError, match="env_id should be 'lift', 'can', 'square' or 'transport'"):
        compose([*words, "task=cn"])
    with pytest.raises(UserError, match="unknown robomimic task 'cn'"):
        RobomimicEnv("cn")
    monkeypatch.setitem(__import__("sys").modules, "robosuite", None)
    with pytest.raises(UserError, match=r"pip install 'dsrl-torchrl\[robomimic\]'"):
        RobomimicEnv("can")
