from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import ParallelEnv, RewardSum, TransformedEnv
from torchrl.envs.utils import check_env_specs

from dsrl_torchrl import LatentActionEnv, make_macro_env
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import BasePolicy, FlowPolicy
from tests.processes import READY
from tests.scripted_env import ScriptedEnv


class TanhPolicy(BasePolicy):
    """chunk = tanh(noise + first number of the observation)."""

    def __init__(self, pred_horizon=4, action_dim=1, **kwargs):
        super().__init__(action_dim, pred_horizon, **kwargs)
        self.weight = nn.Parameter(torch.ones(1))
        self.freeze()

    def forward(self, observation, noise):
        return torch.tanh(self.weight * noise + observation[..., None, :1])


class WrongShape(TanhPolicy):
    """Gives one action where a chunk was asked for."""

    def forward(self, observation, noise):
        return super().forward(observation, noise)[..., 0]


class Returns(TanhPolicy):
    """Gives what ``make`` makes of its chunk."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, observation, noise):
        return self.make(super().forward(observation, noise))


class TakesMore(TanhPolicy):
    """Reads an entry that its in_keys don't name."""

    def forward(self, observation, image, noise):
        return noise


def flow(**kwargs):
    return FlowPolicy(action_dim=1, pred_horizon=4, **kwargs).freeze()


def make_env(lengths=(5, 9), terminates=(True, False), **kwargs):
    return LatentActionEnv(
        ScriptedEnv(list(lengths), list(terminates)), TanhPolicy(), act_horizon=3, gamma=0.9, **kwargs
    )


@pytest.mark.parametrize(("layout", "dim"), [("full", 4), ("act_horizon", 3), ("repeat", 1)])
def test_specs_and_action_size(layout, dim):
    env = make_env(noise_layout=layout, action_magnitude=1.2)
    assert env.action_spec.shape == (2, dim)
    assert env.action_spec.space.high.max() == pytest.approx(1.2)
    check_env_specs(env)


def test_executes_the_decoded_head():
    env = make_env()
    td = env.reset().set("action", torch.randn(2, 4))
    out = env.step(td)
    expected = torch.tanh(td["action"][:, :3].unsqueeze(-1))  # the observation starts at 0
    torch.testing.assert_close(out["next", "action_chunk"], expected)
    torch.testing.assert_close(out["next", "observation"][:, 1], expected.sum((1, 2)))


def test_by_default_all_actions_are_executed_from_the_first_on():
    env = LatentActionEnv(ScriptedEnv([5], [True]), TanhPolicy(first_action=1), gamma=0.9)
    out = env.step(env.reset().set("action", torch.tensor([[0.5, 1.0, -1.0, 2.0]])))
    expected = torch.tanh(torch.tensor([[[1.0], [-1.0], [2.0]]]))
    torch.testing.assert_close(out["next", "action_chunk"], expected)


def test_decode_is_the_chunks_head_deterministic_and_differentiable():
    decoder = make_env().decoder
    observations = TensorDict({"observation": torch.randn(6, 2)}, [6])
    w = torch.randn(6, 4, requires_grad=True)
    head = decoder.decode(observations, w)
    full = decoder.base_policy.decode(observations, decoder.layout.to_chunk_noise(w))
    assert head.shape == (6, 3, 1) and full.shape == (6, 4, 1)
    assert torch.equal(head, full[:, :3])
    assert torch.equal(decoder.decode(observations, w), head)
    full.sum().backward()
    assert w.grad.abs().sum() > 0
    assert all(p.grad is None for p in decoder.parameters())


def test_the_policys_parameters_stay_out_of_the_graph():
    env = make_env()
    w = torch.randn(2, 4, requires_grad=True)
    out = env.step(env.reset().set("action", w))
    assert not out["next", "action_chunk"].requires_grad


def test_random_actions_are_clamped_prior_noise():
    torch.manual_seed(0)
    env = make_env(lengths=[9] * 4000, terminates=[True] * 4000)
    w = env.rand_action()["action"]
    assert w.abs().max() <= 1.5
    # N(0, 1) clamped to ±1.5 has a standard deviation of 0.88; uniform noise in the box would have 0.87 too, but puts
    # no mass on the bounds.
    assert (w.abs() == 1.5).float().mean() == pytest.approx(0.134, abs=0.01)


def test_workers_with_macro_steps_need_only_the_decoder():
    make = partial(make_macro_env, act_horizon=3, gamma=0.9)
    workers = ParallelEnv(
        2,
        [lambda: make(ScriptedEnv([5], [True])), lambda: make(ScriptedEnv([9], [False]))],
        mp_start_method=READY,
    )
    env = LatentActionEnv(workers, TanhPolicy(), act_horizon=3)
    assert workers.is_closed  # nothing has been asked of them yet
    assert env.gamma is None  # they know it
    reference = make_env()
    try:
        a, b = reference.reset(), env.reset()
        for _ in range(4):
            w = torch.randn(2, 4)
            a, a_next = reference.step_and_maybe_reset(a.set("action", w))
            b, b_next = env.step_and_maybe_reset(b.set("action", w.unsqueeze(1)))
            for key in ("reward", "chunk_steps", "observation", "done", "action_chunk"):
                torch.testing.assert_close(b["next", key].squeeze(1), a["next", key])
            a, b = a_next, b_next
    finally:
        env.close()


def test_more_transforms_and_the_collector_work_on_top():
    env = TransformedEnv(make_env(), RewardSum())
    check_env_specs(env)
    collector = Collector(env, None, frames_per_batch=20, total_frames=40)
    for batch in collector:
        assert batch["next", "chunk_steps"].max() <= 3
        assert batch["next", "done"].any()
    collector.shutdown()


def test_the_discount_is_that_of_the_macro_steps():
    assert make_env().gamma == make_env().append_transform(RewardSum()).gamma == 0.9
    macro = make_macro_env(ScriptedEnv([9], [True]), act_horizon=4, gamma=0.8)
    assert LatentActionEnv(macro, TanhPolicy(), gamma=0.9).gamma == 0.8  # the env's: nothing is summed here
    assert LatentActionEnv(TransformedEnv(macro, RewardSum(), auto_unwrap=False), TanhPolicy()).gamma == 0.8


def test_history_of_the_base_policy():
    policy = TanhPolicy(obs_horizon=2)
    env = LatentActionEnv(ScriptedEnv([9], [True]), policy, act_horizon=3)
    assert env.observation_spec["observation"].shape == (1, 4)


def test_an_appended_transform_leaves_decoder_and_prior_alone():
    torch.manual_seed(0)
    env = make_env(lengths=[9] * 4000, terminates=[True] * 4000)
    decoder = env.decoder
    env = env.append_transform(RewardSum())
    assert env.decoder is decoder and env.latent_dim == 4 and env.decoder.base_policy.in_keys == ["observation"]
    out = env.rand_step(env.reset())
    assert (out["action"].abs() == 1.5).float().mean() == pytest.approx(0.134, abs=0.01)
    assert torch.equal(out["next", "episode_reward"], out["next", "reward"])


@pytest.mark.parametrize(
    ("policy", "kwargs", "message"),
    [
        (
            flow(observation_dim=3),
            {},
            r"does not fit the env \(obs_horizon 1\): FlowPolicy expected observation \[\*B, 3\]",
        ),
        (flow(observation_dim=2, obs_horizon=2), {}, r"obs_horizon 2\): .* got observation \[1, 4\]"),
        (TanhPolicy(action_dim=2), {}, "decodes 4 actions of size 2 per macro step, but the env executes 4 of size 1"),
        (TanhPolicy(), {"act_horizon": 5}, "act_horizon must lie between 1 and 4"),
        (TanhPolicy(first_action=2), {"act_horizon": 3}, "act_horizon must lie between 1 and 2"),
        (TanhPolicy(), {"action_magnitude": 0.0}, "action_magnitude must be positive"),
        (TanhPolicy(), {"noise_layout": "half"}, "noise_layout must be one of"),
        (TanhPolicy(noise_horizon=2), {"noise_layout": "act_horizon"}, "a noise for each of the 4 executed steps"),
        (BasePolicy(1, 4), {}, "must be frozen: call its freeze"),
        (TanhPolicy(in_keys=["state"]), {}, "reads state, but the env gives observation, success"),
        (TanhPolicy(in_keys=["state"], obs_horizon=2), {}, "no entry 'state' in the env: it has observation, success"),
        (lambda observation, noise: noise, {}, r"should be a BasePolicy, got a function: call it in the forward"),
        (nn.Linear(2, 1), {}, "should be a BasePolicy, got a Linear"),
        (Returns(lambda chunk: {"action": chunk}), {}, r"Returns\.forward\(\) should return .* returned a dict"),
        (Returns(lambda chunk: (chunk, None)), {}, "should return a tensor .* returned a tuple"),
        (Returns(lambda chunk: chunk.numpy()), {}, "should return a tensor .* returned a ndarray"),
        (Returns(lambda chunk: chunk + int("one")), {}, "does not fit the env .* invalid literal for int"),
        (TakesMore(), {}, r"does not fit the env .* missing 1 required positional argument: 'noise'"),
        (WrongShape(), {}, r"should decode into \[1, 4, 1\] .* but gives \[1, 4\]"),
    ],
)
def test_misfits_are_one_clear_line(policy, kwargs, message):
    with pytest.raises(UserError, match=message) as caught:
        LatentActionEnv(ScriptedEnv([9], [True]), policy, **kwargs)
    assert "\n" not in str(caught.value)


def test_workers_that_execute_another_number_of_actions_are_noticed():
    env = make_macro_env(ScriptedEnv([9], [True]), act_horizon=2, gamma=0.9)
    with pytest.raises(UserError, match="decodes 3 actions of size 1 per macro step, but the env executes 2 of size 1"):
        LatentActionEnv(env, TanhPolicy(), act_horizon=3)
