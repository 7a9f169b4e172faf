"""Every algorithm in small, on states and on pixels, and what is needed to compute an update by hand."""

from __future__ import annotations

import torch
from torch import nn

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import AWR, DSRLAWMLE, DSRLNA, DSRLSAC, IQL, LPDS, LPS, PPO, REDQ, TD3, TD3BC, BestOfN
from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.networks.config import NetworkConfig
from dsrl_torchrl.policies import BasePolicy
from tests.steerability.bases import CameraPolicy, CoinCameraEnv

AGENTS = [DSRLNA, DSRLAWMLE, DSRLSAC, TD3, TD3BC, AWR, IQL, REDQ, PPO, BestOfN, LPDS, LPS]
GAMMA, TAU, MAGNITUDE = 0.875, 0.25, 1.5
SMALL = {"batch_size": 16, "gamma": GAMMA, "tau": TAU, "decoded_pairs": 4, "m_candidates": 8, "critic_only_updates": 2}
SMALL["target_critics"] = 1
NETWORKS = {"num_critics": 2, "num_cells": (16, 16), "activation": "tanh"}


class Leaning(BasePolicy):
    """``chunk = tanh(A w + s)``: its chunks depend on both."""

    def __init__(self):
        super().__init__(action_dim=2, pred_horizon=2)
        generator = torch.Generator().manual_seed(4)
        self.a = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.freeze()

    def forward(self, observation, noise):
        return torch.tanh(noise.flatten(-2) @ self.a.T + observation.repeat_interleave(2, -1)).unflatten(-1, (2, 2))


def state_env():
    env = PointReachEnv(num_envs=4, max_episode_steps=5, seed=0)  # ends inside of a macro step of two
    return LatentActionEnv(env, Leaning(), gamma=GAMMA, action_magnitude=MAGNITUDE)


def pixel_env():
    return LatentActionEnv(CoinCameraEnv(4), CameraPolicy(), act_horizon=2, gamma=GAMMA, action_magnitude=MAGNITUDE)


def make_agent(kind, env=None, seed=0, networks=None, **options):
    """A small agent; of :data:`SMALL`, what its algorithm has."""
    small = {name: value for name, value in SMALL.items() if name in kind.Config.model_fields}
    torch.manual_seed(seed)
    networks = NetworkConfig(**NETWORKS | (networks or {}))
    return kind(state_env() if env is None else env, kind.Config(**small | options), networks)


def make_transitions(agent, env=None, n=16):
    """Macro transitions ``[n]`` as a run stores them, whose episodes end in all ways."""
    env = state_env() if env is None else env
    torch.manual_seed(1)
    policy = agent.policy if agent.on_policy else None
    with torch.no_grad():
        batch = env.rollout(-(-n // 4), policy, auto_cast_to_device=True, break_when_any_done=False)
    transitions = to_macro_transitions(batch, agent.in_keys)[:n].clone()
    following = transitions["next"]
    following["reward"] = torch.randn(n, 1)
    following["chunk_steps"] = torch.randint(1, 3, (n, 1))
    following["terminated"], following["truncated"] = torch.rand(2, n, 1) < 0.3
    following["done"] = following["terminated"] | following["truncated"]
    if agent.on_policy:
        transitions = agent.finish_rollout(transitions.unflatten(0, (4, n // 4))).reshape(-1)
    return agent.store(transitions, online=True)


def make_batch(agent, env=None, n=16):
    """What an update gets: ``[n]``, prepared."""
    return agent.prepare(make_transitions(agent, env, n).unsqueeze(0))[0]


def every_part(agent):
    """All that an update can train."""
    return frozenset().union(*(agent.parts(update) for update in range(100)))


def members(critic, params, observations, action):
    """``Q_i``, ``[N, *B]``: one member after the other, through a tensordict."""
    values = []
    for member in params.unbind(0):
        with member.to_module(critic):
            td = observations.copy().set(critic.in_keys[-1], action)
            values.append(critic(td)["state_action_value"].squeeze(-1))
    return torch.stack(values)


def macro_target(batch, value):
    """Eq. 4: ``R + γ^k (1 - terminated) V(s')``; a truncation bootstraps."""
    following = batch["next"]
    k, alive = following["chunk_steps"].squeeze(-1), ~following["terminated"].squeeze(-1)
    return (following["reward"].squeeze(-1) + GAMMA**k * alive * value).detach()


def step(parameters, loss, lr):
    """The first step of a plain Adam."""
    optimiser = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=lr)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()


def polyak(target, params):
    """Eq. 11, in place."""
    for old, new in zip(target.values(True, True), params.values(True, True), strict=True):
        old.data.lerp_(new.data, TAU)


def state(agent):
    """Everything that is learned, by name."""
    return {name: value.detach().clone() for name, value in agent.state_dict().items() if torch.is_tensor(value)}


def files(agent):
    """What :meth:`Agent.save` would write, as copies."""
    return {name: {key: t.detach().clone() for key, t in tensors.items()} for name, tensors in agent._files().items()}


def changed(before, after):
    """Names of the files that differ."""
    return {
        name for name in before if any(not torch.equal(before[name][key], after[name][key]) for key in before[name])
    }


def _naming(name):
    return lambda message: f"{name}: {message}"


def assert_close(agent, twin, rtol=1e-4, atol=1e-6):
    """Their learned tensors agree, all of them."""
    first, second = state(agent), state(twin)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=rtol, atol=atol, msg=_naming(name))


def assert_logged(metrics, expected):
    """The update logged what was computed by hand."""
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value.detach(), rtol=1e-4, atol=1e-5, msg=_naming(name))
