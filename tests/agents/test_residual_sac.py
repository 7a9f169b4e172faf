"""Residual SAC: DSRL-SAC's update, and an exploration that grows with the env steps (Eq. 30)."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dsrl_torchrl.agents import ResidualSAC
from tests.latent_env.test_base_chunk import make_env

from .cases import make_transitions

NETWORKS = {"num_critics": 2, "num_cells": (16, 16)}


def make(env, **options):
    from dsrl_torchrl.networks.config import NetworkConfig

    torch.manual_seed(0)
    return ResidualSAC(env, ResidualSAC.Config(gamma=0.9, batch_size=16, **options), NetworkConfig(**NETWORKS))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_each_env_follows_the_residual_as_often_as_the_schedule_says(share):
    env = make_env()
    agent = make(env, progressive_env_steps=1_000)
    agent.env_steps.fill_(1_000 * share)
    observations = env.reset().select(*agent.in_keys)[:1].expand(4_000)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        acting = agent.policy(observations.clone())["action"]
    follows = (acting != 0).any(-1)
    assert torch.equal(follows, (acting != 0).all(-1))  # a whole chunk or none of it
    assert follows.float().mean().item() == pytest.approx(share, abs=0.03)


def test_stored_env_steps_move_the_schedule_and_are_resumed():
    env = make_env()
    agent = make(env, progressive_env_steps=64)
    transitions = make_transitions(agent, env)  # stores 16 macro transitions as online ones
    steps = float(transitions["next", "chunk_steps"].sum())
    assert float(agent.env_steps) == steps and float(agent.residual_share()) == pytest.approx(steps / 64)
    agent.store(transitions, online=False)
    assert float(agent.env_steps) == steps
    twin = make(env, progressive_env_steps=64)
    twin.load_state_dict(agent.state_dict())
    assert torch.equal(twin.env_steps, agent.env_steps)
    agent.store(transitions.expand(20, 16).reshape(-1), online=True)
    assert float(agent.residual_share()) == 1.0


@pytest.mark.parametrize("exploration", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_the_schedule_is_none_of_the_kept_policy_s(exploration):
    env = make_env()
    agent = make(env, progressive_env_steps=1_000)
    observations = env.reset().select(*agent.in_keys)
    with torch.no_grad(), set_exploration_type(exploration):
        assert (agent.policy(observations.clone())["action"] == 0).all()
        assert (agent.kept_policy(observations.clone())["action"] != 0).all()


def test_without_a_schedule_it_always_acts():
    env = make_env()
    agent = make(env, progressive_env_steps=0)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        assert (agent.policy(env.reset().select(*agent.in_keys))["action"] != 0).all()


def test_it_learns_from_its_own_transitions():
    env = make_env()
    agent = make(env)
    batch = agent.prepare(make_transitions(agent, env).unsqueeze(0))[0]
    before = [p.detach().clone() for p in agent.actor.parameters()]
    metrics = agent.update(batch, frozenset({"critic", "actor"}))
    assert all(value.isfinite() for value in metrics.values())
    assert any(not torch.equal(old, new) for old, new in zip(before, agent.actor.parameters(), strict=True))
