"""What reaches the env is in the env's dtype, what reaches the policy in the policy's; the noise is float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrl.data import Bounded, Unbounded
from torchrl.envs import TransformedEnv
from torchrl.envs.transforms import DoubleToFloat
from torchrl.envs.utils import check_env_specs

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLNA
from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.policies import BasePolicy, DiffusionPolicy, FlowPolicy, ShortcutPolicy, probe
from tests.scripted_env import ScriptedEnv

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class DoubleEnv(ScriptedEnv):
    """float64 observations, actions and rewards; it takes no others."""

    def __init__(self, lengths, terminates):
        super().__init__(lengths, terminates)
        n = len(lengths)
        self.total = self.total.double()
        self.observation_spec["observation"] = Unbounded((n, 2), dtype=torch.float64)
        self.action_spec = Bounded(-1, 1, shape=(n, 1), dtype=torch.float64)
        self.reward_spec = Unbounded((n, 1), dtype=torch.float64)

    def _observe(self):
        out = super()._observe()
        return out.set("observation", torch.cat([self.t.double(), self.total], -1))

    def _step(self, tensordict):
        assert tensordict["action"].dtype == torch.float64
        out = super()._step(tensordict)
        return out.set("reward", out["reward"].double())


class Strict(BasePolicy):
    """A network that takes its own dtype alone."""

    def __init__(self, dtype):
        super().__init__(1, 4)
        self.network = nn.Linear(3, 1, dtype=dtype)
        self.freeze()

    def forward(self, observation, noise):
        return self.network(torch.cat([observation.unsqueeze(-2).expand(*noise.shape[:-1], 2), noise], -1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("env_class", [ScriptedEnv, DoubleEnv])
def test_policies_of_any_dtype_in_envs_of_any(env_class, dtype):
    torch.manual_seed(0)
    policy = Strict(dtype)
    env = LatentActionEnv(env_class([5, 9], [True, True]), policy, act_horizon=3)
    check_env_specs(env)
    assert env.action_spec.dtype == torch.float32
    out = env.rollout(3, break_when_any_done=False)
    env_dtype = torch.float64 if env_class is DoubleEnv else torch.float32
    assert out["next", "action_chunk"].dtype == torch.float32 and out["next", "observation"].dtype == env_dtype
    observation, noise = out["observation"].to(dtype), out["action"].to(dtype).unsqueeze(-1)
    expected = policy(observation, noise)[..., :3, :].float()
    torch.testing.assert_close(out["next", "action_chunk"], expected, rtol=1e-2, atol=1e-2)
    probe(policy, out[0])


@pytest.mark.parametrize("policy_class", [FlowPolicy, DiffusionPolicy, ShortcutPolicy])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_our_policies_in_any_dtype(policy_class, dtype):
    policy = policy_class(observation_dim=2, action_dim=1, pred_horizon=4).to(dtype).freeze()
    env = LatentActionEnv(DoubleEnv([5, 9], [True, True]), policy, act_horizon=3)
    out = env.rollout(3, break_when_any_done=False)
    assert out["next", "action_chunk"].isfinite().all()


def test_a_policy_may_take_the_entries_as_they_are():
    class Converts(Strict):
        dtype = None

        def forward(self, observation, noise):
            assert (observation.dtype, noise.dtype) == (torch.float64, torch.float32)
            return super().forward(observation.float(), noise)

    LatentActionEnv(DoubleEnv([5], [True]), Converts(torch.float32), act_horizon=3).rollout(2)


def test_floats_above_and_the_envs_own_numbers_below():
    """``DoubleToFloat`` takes every float64 entry that it finds; the policy goes on reading float64."""

    class Precise(Strict):
        def forward(self, observation, noise):
            self.__dict__["read"] = observation
            return super().forward(observation, noise)

    policy = Precise(torch.float64)
    env = TransformedEnv(LatentActionEnv(DoubleEnv([5, 9], [True, True]), policy, act_horizon=3), DoubleToFloat())
    check_env_specs(env)
    td = env.rand_step(env.reset())["next"]
    env.rand_step(td)
    assert td["observation"].dtype == td["reward"].dtype == torch.float32
    assert policy.read.dtype == torch.float64
    assert torch.equal(policy.read.float(), td["observation"])
    assert not torch.equal(policy.read, td["observation"].double())


def test_an_algorithm_learns_from_float64_entries():
    env = LatentActionEnv(DoubleEnv([5, 9], [True, True]), Strict(torch.float32), act_horizon=3)
    agent = DSRLNA(env)
    batch = to_macro_transitions(env.rollout(8, break_when_any_done=False), agent.in_keys)
    assert batch["observation"].dtype == torch.float64
    metrics = agent.update(agent.prepare(batch.unsqueeze(0))[0], agent.parts(0))
    assert all(value.isfinite() for value in metrics.values())
    assert agent.policy(env.reset())["action"].dtype == torch.float32


def test_the_noise_keeps_its_gradient_and_dtype_through_another_dtype():
    policy = Strict(torch.float64)
    env = LatentActionEnv(ScriptedEnv([5], [True]), policy, act_horizon=3)
    w = torch.randn(1, 4, requires_grad=True)
    chunk = env.decoder.decode(env.reset(), w)
    assert chunk.dtype == torch.float32
    chunk.sum().backward()
    assert w.grad.dtype == torch.float32 and w.grad.abs().sum() > 0
