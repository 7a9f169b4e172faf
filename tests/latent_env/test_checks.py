"""An env or a policy that would give wrong macro steps is one line at construction."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded
from torchrl.envs import SerialEnv, TransformedEnv
from torchrl.envs.transforms import (
    AutoResetTransform,
    RenameTransform,
    RewardSum,
    VecGymEnvTransform,
)
from torchrl.envs.utils import check_env_specs

from dsrl_torchrl import LatentActionEnv, make_macro_env
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import check_units
from dsrl_torchrl.policies import BasePolicy
from tests.latent_env.test_latent_action_env import TanhPolicy
from tests.scripted_env import ScriptedEnv


class OneAgentEnv(ScriptedEnv):
    """Entries of one agent under its own names, as in TorchRL's multi-agent envs."""

    def __init__(self, lengths, terminates):
        super().__init__(lengths, terminates)
        n = len(lengths)
        self.action_spec = Composite(agent=Composite(action=Bounded(-1, 1, (n, 1)), shape=(n,)), shape=(n,))
        self.reward_spec = Composite(agent=Composite(reward=Unbounded((n, 1)), shape=(n,)), shape=(n,))

    def _step(self, tensordict):
        out = super()._step(tensordict.copy().set("action", tensordict["agent", "action"]))
        reward = out.pop("reward")
        return out.set(("agent", "reward"), reward)


class WithSpecs(ScriptedEnv):
    def __init__(self, **specs):
        super().__init__([5, 9], [True, True])
        for name, spec in specs.items():
            setattr(self, name, spec)


class SuccessEnv(ScriptedEnv):
    """Success as a simulator's ``info`` may have it."""

    def __init__(self, lengths, terminates, shape=(), dtype=torch.bool):
        super().__init__(lengths, terminates)
        self.flags = (*self.batch_size, *shape), dtype
        self.observation_spec["success"] = Unbounded(self.flags[0], dtype=dtype)

    def _observe(self):
        out = super()._observe()
        shape, dtype = self.flags
        success = out["success"].reshape(-1, *(1 for _ in shape[1:]))
        return out.set("success", success.expand(shape).to(dtype))


def refused(env, match, policy=None, **kwargs):
    with pytest.raises(UserError, match=match) as error:
        LatentActionEnv(env, policy or TanhPolicy(), act_horizon=3, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env", "name"),
    [
        (lambda: ScriptedEnv([5], [True], auto_reset=True), "AutoResetTransform"),
        (lambda: TransformedEnv(ScriptedEnv([5], [True]), AutoResetTransform()), "AutoResetTransform"),
        (lambda: TransformedEnv(ScriptedEnv([5], [True], auto_reset=True), RewardSum()), "AutoResetTransform"),
        (lambda: TransformedEnv(ScriptedEnv([5], [True]), VecGymEnvTransform()), "VecGymEnvTransform"),
    ],
)
def test_an_env_that_resets_itself_is_refused(env, name):
    refused(env(), f"does not reset itself, but {name} is there for one that does")
    with pytest.raises(UserError, match="does not reset itself"):
        make_macro_env(env(), act_horizon=3, gamma=0.9)


def test_entries_under_other_names_are_refused_until_renamed():
    env = OneAgentEnv([5, 9], [True, True])
    refused(env, r"action under the name 'action', got \('agent', 'action'\): rename it below, by TorchRL's RenameTra")
    names = RenameTransform([("agent", "reward")], ["reward"], [("agent", "action")], ["action"])
    env = LatentActionEnv(TransformedEnv(env, names), TanhPolicy(), act_horizon=3, gamma=0.9)
    check_env_specs(env)
    rollout = env.rollout(2, break_when_any_done=False)["next"]
    first = 1 + 0.9 * 2 + 0.81 * 3
    torch.testing.assert_close(rollout["reward"].squeeze(-1)[:, 0], torch.tensor([first, first]))
    torch.testing.assert_close(rollout["observation"][1, 1, 1], rollout["action_chunk"][1].sum())


def test_other_kinds_of_action_reward_and_done_are_refused():
    flag = Categorical(2, shape=(2, 3, 1), dtype=torch.bool)
    refused(
        WithSpecs(action_spec=OneHot(4, shape=(2, 4))), r"an action \[2, action_dim\] of real numbers, got \[2, 4\] t"
    )
    refused(WithSpecs(action_spec=Bounded(-1, 1, (2, 3, 1))), r"an action \[2, action_dim\] .* got \[2, 3, 1\]")
    refused(WithSpecs(reward_spec=Unbounded((2, 3, 1))), r"a reward \[2, 1\], got \[2, 3, 1\]")
    refused(WithSpecs(done_spec=Composite(done=flag, terminated=flag, shape=(2,))), r"a done \[2, 1\], got \[2, 3, 1\]")


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_success_is_flags_of_the_usual_shape_whatever_the_env_gives(shape, dtype):
    env = LatentActionEnv(SuccessEnv([5, 1], [True, True], shape, dtype), TanhPolicy(), act_horizon=3)
    reference = LatentActionEnv(ScriptedEnv([5, 1], [True, True]), TanhPolicy(), act_horizon=3)
    check_env_specs(env)
    torch.manual_seed(0)
    got = env.rollout(2, break_when_any_done=False)
    torch.manual_seed(0)
    expected = reference.rollout(2, break_when_any_done=False)
    for where in (got, got["next"]):
        assert where["success"].dtype == where["success_once"].dtype == torch.bool
    for key in ("success", "success_once"):
        assert torch.equal(got["next", key], expected["next", key]) and got["next", key].shape == (2, 2, 1)


def test_success_of_another_shape_is_refused_and_its_absence_is_not():
    refused(SuccessEnv([5, 9], [True, True], (3,)), r"one success flag per env, \[\*B\] or \[\*B, 1\] .* got \(2, 3\)")
    env = ScriptedEnv([5, 9], [True, True])
    env.observation_spec = Composite(observation=Unbounded((2, 2)), shape=(2,))
    observe = env._observe
    env._observe = lambda: observe().exclude("success")
    rollout = LatentActionEnv(env, TanhPolicy(), act_horizon=3).rollout(2)
    assert "success_once" not in rollout["next"].keys()


class Dropout(BasePolicy):
    def __init__(self):
        super().__init__(1, 4)
        self.network = nn.Sequential(nn.Linear(1, 1), nn.Dropout())

    def forward(self, observation, noise):
        return self.network(noise)


def test_a_policy_that_is_frozen_in_name_only_is_refused():
    for thaw in (
        lambda policy: policy.network.train(),
        lambda policy: policy.network[0].requires_grad_(True),
        lambda policy: policy.add_module("late", nn.Linear(1, 1)),
    ):
        policy = Dropout().freeze()
        assert policy.frozen
        thaw(policy)
        assert not policy.frozen
        refused(ScriptedEnv([5], [True]), r"must be frozen: call its freeze\(\) first", policy)
    refused(ScriptedEnv([5], [True]), r"must be frozen: call its freeze\(\) first", Dropout())


def test_nobody_puts_the_frozen_policy_into_train_mode():
    env = LatentActionEnv(ScriptedEnv([5, 9], [True, True]), Dropout().freeze(), act_horizon=3)
    env.append_transform(RewardSum())
    learner = nn.ModuleList([env.decoder, nn.Dropout()])
    for whole in (env, learner, SerialEnv(1, lambda: env)):
        whole.train()
        assert env.decoder.base_policy.frozen


class Scaled(BasePolicy):
    def __init__(self, factor):
        super().__init__(1, 4)
        self.factor = factor
        self.freeze()

    def forward(self, observation, noise):
        return self.factor * noise


def test_actions_in_other_units_are_refused():
    env = ScriptedEnv([5], [True])
    refused(env, r"actions are far out of the env's range, \d+ of its half ranges away", Scaled(50.0))
    refused(env, "far out of the env's range", Scaled(float("inf")))
    LatentActionEnv(env, Scaled(3.0), act_horizon=3)
    LatentActionEnv(WithSpecs(action_spec=Bounded(-50, 50, (2, 1))), Scaled(50.0), act_horizon=3)
    LatentActionEnv(WithSpecs(action_spec=Unbounded((2, 1))), Scaled(50.0), act_horizon=3)


def test_one_dimension_in_other_units_is_refused():
    """Millimetres beside a gripper that is right: most of all actions are not far."""
    action = Bounded(torch.tensor([[-1.0, -1.0, -2.0]]), torch.tensor([[1.0, 1.0, 2.0]]), (1, 3))
    head = torch.randn(64, 1, 3)
    check_units(head, action)
    with pytest.raises(UserError, match=r"far out of the env's range.*dimensions 1\)"):
        check_units(head * torch.tensor([1.0, 1000.0, 1.0]), action)


def test_the_checks_draw_nothing_from_the_users_seed():
    torch.manual_seed(0)
    LatentActionEnv(ScriptedEnv([5], [True]), TanhPolicy(), act_horizon=3)
    drawn = torch.randn(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randn(3))
