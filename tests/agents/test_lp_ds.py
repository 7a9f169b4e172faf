"""LP-DS (Eq. 32) against the equations, written out; the shift, its multiplier, and where no gradient goes."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dsrl_torchrl.agents import LPDS
from dsrl_torchrl.errors import UserError

from .cases import assert_close, assert_logged, every_part, make_agent, make_batch, members, polyak, state_env, step
from .cases import macro_target as target

RATES = {"critic_lr": 1e-3, "actor_lr": 3e-4}
DIM = 4
DUAL = {"trust_region": 0.2, "multiplier_init": 0.7, "multiplier_lr": 1e-2}


def make(**options):
    """A shift and critics that have learned something."""
    agent = make_agent(LPDS, **RATES | DUAL | options)
    torch.manual_seed(3)
    for p in agent.actor.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return agent


def shift(agent, features):
    """``Δ(s)`` by hand: two tanh layers and a linear one."""
    network = agent.actor.mean.module
    x = features
    for layer in (network[0][0], network[0][2]):
        x = torch.tanh(x @ layer.weight.T + layer.bias)
    return x @ network[1].weight.T + network[1].bias


def by_hand(agent, batch, backup):
    """Makes the update with plain Adams on ``agent``'s parameters; returns what should have been logged."""
    keep = (lambda q: q.min(0)[0]) if backup == "min" else (lambda q: q.mean(0))
    decode, td, distilled = agent.decoder.decode, agent.q_action_loss, agent.aliasing_loss
    s, following = agent.encoder(batch.copy()), agent.encoder(batch["next"].copy())

    w = torch.randn(len(batch), DIM) + shift(agent, following["features"])  # Eq. 12, without entropy
    value = keep(members(td.q_action, td.target_q_action_params, following, decode(following, w)))
    q = members(td.q_action, td.q_action_params, s, batch["next", "action_chunk"])
    loss_td = (q - target(batch, value)).square().mean(1).sum()
    step(td.q_action_params.values(True, True), loss_td, RATES["critic_lr"])

    w = torch.randn(len(batch), DIM)  # Eq. 13
    teacher = members(td.q_action, td.q_action_params, s, decode(s, w)).detach()
    loss_distil = (members(distilled.q_noise, distilled.q_noise_params, s, w) - teacher).square().mean(1).sum()
    step(distilled.q_noise_params.values(True, True), loss_distil, RATES["critic_lr"])

    epsilon, delta, multiplier = torch.randn(len(batch), DIM), shift(agent, s["features"]), DUAL["multiplier_init"]
    q = keep(members(distilled.q_noise, distilled.q_noise_params, s, epsilon + delta))
    squared = delta.square().sum(-1).mean()
    loss_actor = -q.mean() + multiplier * (squared - DUAL["trust_region"] * DIM)
    step(agent.actor.parameters(), loss_actor, RATES["actor_lr"])
    multiplier = max(0.0, multiplier + DUAL["multiplier_lr"] * float(squared.detach() - DUAL["trust_region"] * DIM))
    agent.multiplier.fill_(multiplier)
    for average, new in zip(agent.average.parameters(), agent.actor.parameters(), strict=True):
        average.data.copy_(new.data)
    agent.averaged.fill_(1.0)
    polyak(td.target_q_action_params, td.q_action_params)
    return {
        "q_action/loss": loss_td,
        "q_noise/loss": loss_distil,
        "actor/loss": loss_actor,
        "actor/q_mean": q.mean(),
        "actor/squared_shift": squared,
        "actor/multiplier": torch.tensor(multiplier),
    }


@pytest.mark.parametrize("backup", ["min", "mean"])
def test_an_update_is_the_equations(backup):
    agent, twin = make(backup=backup), make(backup=backup)
    batch = make_batch(agent)
    torch.manual_seed(5)
    metrics = agent.update(batch, every_part(agent))
    torch.manual_seed(5)
    assert_logged(metrics, by_hand(twin, batch, backup))
    assert_close(agent, twin)


def test_the_actors_loss_to_a_millionth():
    """In float64, from the very numbers that the update had."""
    agent = make()
    batch, seen = agent.encode(make_batch(agent), True), {}
    agent.descend = lambda name, loss: seen.setdefault(name, loss.detach()) * 0
    torch.manual_seed(5)
    agent.learn_actor(batch)
    torch.manual_seed(5)
    epsilon = torch.randn(len(batch), DIM)
    agent.double()
    batch = batch.apply(lambda x: x.double() if x.is_floating_point() else x)
    with torch.no_grad():
        delta = shift(agent, batch["features"])
        critic, params = agent.aliasing_loss.q_noise, agent.aliasing_loss.q_noise_params
        q = members(critic, params, batch.select("features"), epsilon.double() + delta).min(0)[0]
        expected = -q.mean() + 0.7 * (delta.square().sum(-1).mean() - 0.2 * DIM)
    assert float(seen["actor"]) == pytest.approx(float(expected), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("trust_region", "rises"), [(1e-4, True), (1e4, False)])
def test_the_multiplier_rises_outside_of_the_trust_region_and_falls_to_0_inside(trust_region, rises):
    agent = make(trust_region=trust_region)
    batch, seen = make_batch(agent), []
    for _ in range(3):
        seen.append(float(agent.update(batch, every_part(agent))["actor/multiplier"]))
    assert (0.7 < seen[0] < seen[1] < seen[2]) if rises else (seen == [0.0] * 3)


def test_the_constraint_holds_where_the_critic_pulls_without_end():
    """With ``Q^W = sum(w)`` the optimum is known: every component is ``√(δ / D)`` and ``λ = √D / (2 √δ)``."""
    agent = make(actor_lr=3e-3, multiplier_lr=2e-2)
    agent.aliasing_loss.q_noise.ensemble = lambda params, s, w: w.sum(-1).expand(2, *w.shape[:-1])
    batch = agent.encode(make_batch(agent), True)
    for _ in range(1_500):
        metrics = agent.learn_actor(batch)
    with torch.no_grad():
        delta = agent.actor.shift(batch)
    torch.testing.assert_close(delta, torch.full_like(delta, 0.2**0.5), rtol=0.05, atol=0)
    assert float(metrics["actor/multiplier"]) == pytest.approx(1 / (2 * 0.2**0.5), rel=0.05)


def test_it_begins_as_the_base_policy_and_its_mode_is_the_shift():
    env = state_env()
    agent = make_agent(LPDS, env)
    observations = env.reset().select("observation")[:1].expand(20_000).clone()
    with torch.no_grad():
        with set_exploration_type(ExplorationType.RANDOM):
            w = agent.policy(observations.clone())["action"]
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            mode = agent.policy(observations.clone())["action"]
    assert mode.abs().max() < 0.02
    torch.testing.assert_close(torch.cov(w.T), torch.eye(DIM), rtol=0, atol=0.05)
    torch.testing.assert_close(w.mean(0), mode[0], rtol=0, atol=0.05)


def test_no_gradient_of_the_actor_reaches_a_critic():
    agent = make()
    batch = agent.encode(make_batch(agent), True)
    agent.learn_actor(batch)
    learned = [
        *agent.aliasing_loss.q_noise_params.values(True, True),
        *agent.q_action_loss.q_action_params.values(True, True),
    ]
    assert all(p.grad is None for p in learned)
    assert all(p.grad is not None for p in agent.actor.parameters())


@pytest.mark.parametrize(
    "options", [{"trust_region": 0.0}, {"multiplier_init": -1.0}, {"multiplier_lr": 0.0}, {"alpha_init": 0.1}]
)
def test_bad_options(options):
    with pytest.raises(UserError, match=next(iter(options))):
        LPDS.Config(**options)
