"""TD3 on the noise (Eq. 17) against the equations, written out."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dsrl_torchrl.agents import TD3

from .cases import (
    MAGNITUDE,
    assert_close,
    assert_logged,
    every_part,
    make_agent,
    make_batch,
    members,
    polyak,
    state_env,
    step,
)
from .cases import macro_target as target

RATES = {"critic_lr": 1e-3, "actor_lr": 3e-4}
#: Smoothing noise and its bound, in units of the noise's bound; wide enough for both clips to act.
SMOOTHING = {"policy_noise": 0.8, "noise_clip": 0.6}


def act(params, features):
    """``π(s)`` by hand: two tanh layers and a squashed linear one."""
    x = features
    for layer in ("0", "2"):
        x = torch.tanh(x @ params["module", "0", layer, "weight"].T + params["module", "0", layer, "bias"])
    return MAGNITUDE * torch.tanh(x @ params["module", "1", "weight"].T + params["module", "1", "bias"])


def by_hand(agent, batch, with_actor):
    """Makes the update with plain Adams on ``agent``'s parameters; returns what should have been logged."""
    loss, s, following = agent.loss, agent.encoder(batch.copy()), agent.encoder(batch["next"].copy())
    critic, params = loss.qvalue_network, loss.qvalue_network_params
    bound = SMOOTHING["noise_clip"] * MAGNITUDE
    noise = (torch.randn_like(batch["action"]) * SMOOTHING["policy_noise"] * MAGNITUDE).clamp(-bound, bound)
    w = (act(loss.target_actor_network_params, following["features"]) + noise).clamp(-MAGNITUDE, MAGNITUDE)
    assert (noise.abs() == bound).any() and (w.abs() == MAGNITUDE).any()
    value = members(critic, loss.target_qvalue_network_params, following, w).min(0)[0]
    q = members(critic, params, s, batch["action"])
    error = q - target(batch, value)
    loss_td = error.square().mean(1).sum()
    step(params.values(True, True), loss_td, RATES["critic_lr"])
    expected = {"q_noise/loss": loss_td, "q_noise/td_error": error.abs().max(0)[0].mean(), "q_noise/q_mean": q.mean()}
    if with_actor:
        q = members(critic, params, s, act(loss.actor_network_params, s["features"]))
        step(agent.actor.parameters(), -q[0].mean(), RATES["actor_lr"])  # the first critic alone
        expected |= {"actor/loss": -q[0].mean(), "actor/q_mean": q.mean()}
        for average, new in zip(agent.average.parameters(), agent.actor.parameters(), strict=True):
            average.data.copy_(new.data)
        agent.averaged.fill_(1.0)
    polyak(loss.target_qvalue_network_params, params)
    polyak(loss.target_actor_network_params, loss.actor_network_params)
    return expected


def make(seed=0, **options):
    agent = make_agent(TD3, seed=seed, **RATES, **SMOOTHING, **options)
    torch.manual_seed(3)
    for network in (agent.loss.actor_network_params, agent.loss.target_actor_network_params):
        for p in network.values(True, True):
            p.data.add_(0.5 * torch.randn_like(p))  # an actor that has learned something, and its target something else
    return agent


@pytest.mark.parametrize("with_actor", [True, False])
def test_an_update_is_the_equations(with_actor):
    agent, twin = make(), make()
    batch = make_batch(agent)
    torch.manual_seed(5)
    metrics = agent.update(batch, every_part(agent) if with_actor else frozenset({"critic"}))
    torch.manual_seed(5)
    expected = by_hand(twin, batch, with_actor)
    assert_logged(metrics, expected)
    assert_close(agent, twin)


def test_the_acting_policy_explores_around_the_actor_and_the_kept_one_does_not():
    env = state_env()
    agent = make_agent(TD3, env, exploration_noise=0.1)
    observations = env.reset().select("observation").expand(500, 4)
    with torch.no_grad():
        with set_exploration_type(ExplorationType.RANDOM):
            acting = agent.policy(observations.clone())["action"]
            kept = agent.kept_policy(observations.clone())["action"]
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            still = agent.policy(observations.clone())["action"]
    assert torch.equal(kept, still)
    assert (acting - still).std().item() == pytest.approx(0.1 * MAGNITUDE, rel=0.05)
    assert acting.abs().max() <= MAGNITUDE


def test_the_first_actor_wants_no_noise():
    env = state_env()
    agent = make_agent(TD3, env)
    with torch.no_grad():
        assert agent.kept_policy(env.reset().select("observation"))["action"].abs().max() < 0.05
