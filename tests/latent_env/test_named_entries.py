"""A base policy that reads a picture and a nested state, with more noise than actions: hand-computed macro steps."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import ParallelEnv, RewardSum, SerialEnv
from torchrl.envs.utils import check_env_specs

from dsrl_torchrl import LatentActionEnv, make_macro_env
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import BasePolicy
from tests.processes import READY
from tests.scripted_env import ScriptedEnv

STATE = ("agent", "state")


class CameraEnv(ScriptedEnv):
    """The scripted episodes as a float64 state ``[t, action sum so far]`` and pixels ``[3, 8, 8]``; no ``observation``.

    The value of channel c is ``10 t + c``.
    """

    def __init__(self, lengths, terminates):
        super().__init__(lengths, terminates)
        n = len(lengths)
        self.observation_spec = Composite(
            pixels=Bounded(0, 255, shape=(n, 3, 8, 8), dtype=torch.uint8),
            agent=Composite(state=Unbounded((n, 2), dtype=torch.float64), shape=(n,)),
            success=Categorical(2, shape=(n, 1), dtype=torch.bool),
            shape=(n,),
        )

    def _observe(self):
        value = (10 * self.t + torch.arange(3)).to(torch.uint8)  # (n, 3)
        pixels = value[..., None, None].expand(-1, -1, 8, 8).clone()
        state = torch.cat([self.t, self.total], -1).double()
        return TensorDict({"pixels": pixels, "agent": {"state": state}, "success": self.t == 2}, self.batch_size)


class CameraPolicy(BasePolicy):
    """``chunk[t] = noise[t, 0] / 10 + newest t / 100 + newest top-left pixel / 1000``; keeps the noise that came."""

    def __init__(self, obs_horizon=1, **kwargs):
        sizes = {"noise_horizon": 6, "noise_dim": 3, "first_action": 2} | kwargs
        super().__init__(1, 5, in_keys=["pixels", STATE], obs_horizon=obs_horizon, **sizes)
        self.freeze()

    def forward(self, pixels, state, noise):
        batch, n = noise.shape[:-2], self.obs_horizon
        assert noise.shape[-2:] == (self.noise_horizon, self.noise_dim)
        assert (pixels.dtype, state.dtype) == (torch.uint8, torch.float64)
        assert pixels.shape == (*batch, 3 * n, 8, 8) and state.shape == (*batch, 2 * n)
        self.__dict__["noise"] = noise
        seen = state[..., -2].float() / 100 + pixels[..., -3, 0, 0].float() / 1000
        return noise[..., :5, :1] / 10 + seen[..., None, None]


class RemotePolicy(CameraPolicy):
    """A policy in another process: chunks without gradient, nothing to pickle, nothing to hash."""

    differentiable = False
    picklable = False

    def forward(self, pixels, state, noise):
        return super().forward(pixels, state, noise).detach()

    def content_hash(self):
        return None


def make_env(policy, lengths=(5, 9), act_horizon=2, **kwargs):
    env = CameraEnv(list(lengths), [True] * len(lengths))
    return LatentActionEnv(env, policy, act_horizon=act_horizon, gamma=0.99, **kwargs)


def frames(*times):
    """The top-left pixel of every channel of a history, oldest first."""
    return [10 * t + c for t in times for c in range(3)]


def seen(td):
    return td["pixels"][:, :, 0, 0].tolist(), td[STATE][:, ::2].tolist()


@pytest.mark.parametrize("obs_horizon", [1, 2])
def test_specs_and_rollout(obs_horizon):
    env = make_env(CameraPolicy(obs_horizon))
    check_env_specs(env)
    assert env.decoder.base_policy.in_keys == ["pixels", STATE]
    assert env.observation_spec["pixels"].shape == (2, 3 * obs_horizon, 8, 8)
    assert env.observation_spec["pixels"].dtype == torch.uint8
    assert env.observation_spec[STATE].shape == (2, 2 * obs_horizon)
    rollout = env.rollout(4, break_when_any_done=False)
    assert rollout["next", "pixels"].dtype == torch.uint8
    assert rollout["next", "agent", "state"].dtype == torch.float64
    assert rollout["next", "agent", "state"].shape == (2, 4, 2 * obs_horizon)


def test_the_chunk_is_computed_from_both_entries_and_executed_from_its_first_action_on():
    env = make_env(CameraPolicy())
    w = torch.randn(2, 18)
    first, td = env.step_and_maybe_reset(env.reset().set("action", w))
    expected = w.view(2, 6, 3)[:, 2:4, :1] / 10  # at t = 0 all that is seen is 0
    torch.testing.assert_close(first["next", "action_chunk"], expected)
    torch.testing.assert_close(first["next", "agent", "state"][:, 1].float(), expected.sum((1, 2)))
    second = env.step(td.set("action", w))
    torch.testing.assert_close(second["next", "action_chunk"], expected + 2 / 100 + 20 / 1000)  # at t = 2
    assert second["next", "reward"].squeeze(-1).tolist() == pytest.approx([3 + 0.99 * 4] * 2)


@pytest.mark.parametrize(("layout", "dim"), [("full", 18), ("act_horizon", 6), ("repeat", 3)])
def test_noise_of_its_own_size_in_every_layout(layout, dim):
    policy = CameraPolicy()
    env = make_env(policy, noise_layout=layout)
    assert env.latent_dim == dim and env.action_spec.shape == (2, dim)
    w = torch.randn(2, dim)
    env.step(env.reset().set("action", w))
    expected = {
        "full": lambda: w.view(2, 6, 3),
        "repeat": lambda: w[:, None].expand(2, 6, 3),
        # The policy's steps 0 and 1 come before the first executed one, 4 and 5 behind the last.
        "act_horizon": lambda: torch.cat([torch.zeros(2, 2, 3), w.view(2, 2, 3), torch.zeros(2, 2, 3)], 1),
    }[layout]()
    assert torch.equal(policy.noise, expected)


def test_decoding_takes_any_leading_dims():
    decoder = make_env(CameraPolicy()).decoder
    td = TensorDict({"pixels": torch.zeros(4, 3, 8, 8, dtype=torch.uint8), STATE: torch.randn(4, 2).double()}, [4])
    w = torch.randn(7, 4, 18)
    chunks = decoder.decode(td.expand(7, 4), w)
    assert chunks.shape == (7, 4, 2, 1)
    torch.testing.assert_close(chunks[3], decoder.decode(td, w[3]))
    whole = decoder.base_policy.decode(td, decoder.layout.to_chunk_noise(w[3]))
    torch.testing.assert_close(whole[:, 2:4], chunks[3])


def test_the_history_of_each_entry_is_of_primitive_steps():
    """H_a = 3: after a macro step the last two of three primitive observations, oldest first, also where one ended."""
    env = make_env(CameraPolicy(2), lengths=(1, 5, 9), act_horizon=3)
    td = env.reset()
    assert seen(td) == ([frames(0, 0)] * 3, [[0, 0]] * 3)
    out, td = env.step_and_maybe_reset(env.rand_action(td))
    assert out["next", "chunk_steps"].squeeze(-1).tolist() == [1, 3, 3]
    assert seen(out["next"]) == ([frames(0, 1), frames(2, 3), frames(2, 3)], [[0, 1], [2, 3], [2, 3]])
    chunk, state = out["next", "action_chunk"].squeeze(-1).double(), out["next", "agent", "state"]
    torch.testing.assert_close(state[1], torch.tensor([2.0, chunk[1, :2].sum(), 3.0, chunk[1].sum()]).double())
    # Only the first has been reset: its first observation is repeated, the others keep theirs.
    assert seen(td) == ([frames(0, 0), frames(2, 3), frames(2, 3)], [[0, 0], [2, 3], [2, 3]])
    out, td = env.step_and_maybe_reset(env.rand_action(td))
    assert out["next", "chunk_steps"].squeeze(-1).tolist() == [1, 2, 3]
    assert seen(out["next"]) == ([frames(0, 1), frames(4, 5), frames(5, 6)], [[0, 1], [4, 5], [5, 6]])
    assert seen(td) == ([frames(0, 0), frames(0, 0), frames(5, 6)], [[0, 0], [0, 0], [5, 6]])
    # What was given before has not been written over by the steps since.
    assert seen(out) == ([frames(0, 0), frames(2, 3), frames(2, 3)], [[0, 0], [2, 3], [2, 3]])


@pytest.mark.parametrize("batched", [SerialEnv, partial(ParallelEnv, mp_start_method=READY)], ids=["serial", "workers"])
def test_workers_give_the_same_entries(batched):
    make = partial(
        make_macro_env, act_horizon=3, gamma=0.99, obs_horizon=2, history_keys=["pixels", STATE]
    )  # fmt: skip
    workers = batched(2, [lambda n=n: make(CameraEnv([n], [True])) for n in (5, 9)])
    env = LatentActionEnv(workers, CameraPolicy(2), act_horizon=3)
    reference = make_env(CameraPolicy(2), act_horizon=3)
    try:
        a, b = reference.reset(), env.reset()
        for _ in range(3):
            w = torch.randn(2, 18)
            a, a_next = reference.step_and_maybe_reset(a.set("action", w))
            b, b_next = env.step_and_maybe_reset(b.set("action", w.unsqueeze(1)))
            for key in ("pixels", STATE, "action_chunk", "reward", "done"):
                assert torch.equal(b["next"].get(key).squeeze(1), a["next"].get(key))
            a, b = a_next, b_next
    finally:
        env.close()


def test_a_missing_entry_is_answered_with_those_that_there_are():
    env = ScriptedEnv([9], [True])
    with pytest.raises(UserError, match=r"reads pixels, \('agent', 'state'\), but the env gives observation, success"):
        LatentActionEnv(env, CameraPolicy(), act_horizon=2)
    camera = CameraEnv([9], [True])
    with pytest.raises(UserError, match=r"the env gives pixels, \('agent', 'state'\), success.*rename") as error:
        LatentActionEnv(camera, BasePolicy(1, 4).freeze())
    assert "\n" not in str(error.value)


def test_a_policy_that_is_not_frozen_is_refused():
    policy = CameraPolicy()
    policy._frozen = False
    with pytest.raises(UserError, match=r"must be frozen: call its freeze\(\) first"):
        make_env(policy)


@pytest.mark.parametrize("send", [pickle.dumps, copy.deepcopy], ids=lambda f: f.__name__)
def test_what_cannot_be_pickled_can_be_steered(send):
    policy = RemotePolicy(2)
    env = make_env(policy, act_horizon=3)
    with pytest.raises(UserError, match="RemotePolicy cannot be sent") as error:
        send(policy)
    assert "\n" not in str(error.value)
    assert policy.content_hash() is None
    check_env_specs(env)
    env = env.append_transform(RewardSum())
    assert env.decoder.base_policy is policy
    assert env.rollout(2)["next", "action_chunk"].shape == (2, 2, 3, 1)
    collector = Collector(env, None, frames_per_batch=8, total_frames=8)
    assert [batch["next", "reward"].shape for batch in collector] == [(2, 4, 1)]
    assert env.decoder.base_policy is policy


def test_chunks_without_gradient_step_the_env():
    env = make_env(RemotePolicy())
    w = torch.randn(2, 18, requires_grad=True)
    td = env.reset()
    assert not env.decoder.decode(td, w).requires_grad
    out = env.step(td.set("action", w.detach()))
    torch.testing.assert_close(out["next", "action_chunk"], w.detach().view(2, 6, 3)[:, 2:4, :1] / 10)


def test_workers_of_a_policy_that_cannot_be_pickled():
    workers = ParallelEnv(
        2, lambda: make_macro_env(CameraEnv([5], [True]), act_horizon=2, gamma=0.99), mp_start_method=READY
    )
    env = LatentActionEnv(workers, RemotePolicy(), act_horizon=2)
    try:
        assert env.rollout(2)["next", "chunk_steps"].flatten().tolist() == [2, 2, 2, 2]
    finally:
        env.close()
