"""LPS (Eq. 33) against the equations, written out; the sphere, and where the gradient passes and stops."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import LPS
from dsrl_torchrl.agents.lps import Explore, on_sphere
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import UserError

from .cases import (
    Leaning,
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
DIM = 4


def make(env=None, **options):
    """Critics that have learned something."""
    agent = make_agent(LPS, env, **RATES, **options)
    torch.manual_seed(3)
    for key, p in agent.q_action_loss.q_action_params.items(True, True):
        if "mlp" in key:
            p.data.add_(0.3 * torch.randn_like(p))
    return agent


def act(agent, features):
    """``√D f(s) / ‖f(s)‖`` by hand: two tanh layers, a linear one, the sphere."""
    network = agent.actor.module
    x = features
    for layer in (network[0][0], network[0][2]):
        x = torch.tanh(x @ layer.weight.T + layer.bias)
    x = x @ network[1].weight.T + network[1].bias
    return x * (DIM / x.square().sum(-1, keepdim=True)).sqrt()


def by_hand(agent, batch, backup):
    """Makes the update with plain Adams on ``agent``'s parameters; returns what should have been logged."""
    keep = (lambda q: q.min(0)[0]) if backup == "min" else (lambda q: q.mean(0))
    decode, td = agent.decoder.decode, agent.q_action_loss
    s, following = agent.encoder(batch.copy()), agent.encoder(batch["next"].copy())
    w = act(agent, following["features"])
    value = keep(members(td.q_action, td.target_q_action_params, following, decode(following, w)))
    q = members(td.q_action, td.q_action_params, s, batch["next", "action_chunk"])
    loss_td = (q - target(batch, value)).square().mean(1).sum()
    step(td.q_action_params.values(True, True), loss_td, RATES["critic_lr"])
    q = keep(members(td.q_action, td.q_action_params, s, decode(s, act(agent, s["features"]))))  # end to end
    loss_actor = -q.mean() / q.abs().mean().detach()
    step(agent.actor.parameters(), loss_actor, RATES["actor_lr"])
    for average, new in zip(agent.average.parameters(), agent.actor.parameters(), strict=True):
        average.data.copy_(new.data)
    agent.averaged.fill_(1.0)
    polyak(td.target_q_action_params, td.q_action_params)
    return {"q_action/loss": loss_td, "actor/loss": loss_actor, "actor/q_mean": q.mean()}


@pytest.mark.parametrize("backup", ["min", "mean"])
def test_an_update_is_the_equations(backup):
    agent, twin = make(backup=backup), make(backup=backup)
    batch = make_batch(agent)
    metrics = agent.update(batch, every_part(agent))
    assert_logged(metrics, by_hand(twin, batch, backup))
    assert_close(agent, twin)


def test_the_actors_gradient_is_that_of_the_whole_chain_to_a_millionth():
    """Normalised critic, decoder and sphere, in one piece in float64; only the denominator is a constant."""
    agent = make()
    batch, seen = agent.encode(make_batch(agent), True), {}
    agent.descend = lambda name, loss: seen.setdefault(name, torch.autograd.grad(loss, [*agent.actor.parameters()]))[0]
    logged = agent.learn_actor(batch)
    agent.double()
    agent.decoder.base_policy.double()
    batch = batch.apply(lambda x: x.double() if x.is_floating_point() else x)
    critic, params = agent.q_action_loss.q_action, agent.q_action_loss.q_action_params
    chunk = agent.decoder.decode(batch, act(agent, batch["features"]))
    q = members(critic, params, batch.select("features"), chunk).mean(0)
    loss = -q.mean() / float(q.abs().mean())
    expected = torch.autograd.grad(loss, [*agent.actor.parameters()])
    assert float(logged["actor/loss"]) == pytest.approx(float(loss), rel=1e-6)
    for gradient, wanted in zip(seen["actor"], expected, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-6)


def test_scaled_returns_make_the_same_step():
    """``-Q / |Q|``: the learning rate does not depend on the reward's scale."""
    gradients = []
    for scale in (1.0, 100.0):
        agent = make()
        batch, seen = agent.encode(make_batch(agent), True), []
        values = agent.q_action_loss.values
        agent.q_action_loss.__dict__["values"] = lambda s, a, values=values, scale=scale: scale * values(s, a)
        agent.descend = lambda name, loss, agent=agent, seen=seen: (
            seen.extend(torch.autograd.grad(loss, [*agent.actor.parameters()])) or torch.zeros(())
        )
        agent.learn_actor(batch)
        gradients.append(seen)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_every_noise_lies_on_the_sphere():
    env = state_env()
    agent = make(env, exploration_noise=0.5)
    observations = env.reset().select("observation").expand(100, 4).clone()
    seen = []
    for exploration in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC):
        with torch.no_grad(), set_exploration_type(exploration):
            for policy in (agent.policy, agent.kept_policy):
                w = policy(observations.clone())["action"]
                torch.testing.assert_close(w.norm(dim=-1), torch.full((100, 4), DIM**0.5), rtol=1e-6, atol=0)
                seen.append(w)
    assert not torch.equal(seen[0], seen[2])  # the acting policy explores
    assert torch.equal(seen[1], seen[3]) and torch.equal(seen[1], seen[2])


def test_exploration_is_of_the_asked_size():
    """In the D - 1 directions along the sphere."""
    torch.manual_seed(0)
    w = on_sphere(torch.randn(20_000, DIM))
    with set_exploration_type(ExplorationType.RANDOM):
        moved = Explore(0.01)(w) - w
    assert moved.square().sum(-1).mean().sqrt().item() == pytest.approx(0.01 * (DIM - 1) ** 0.5, rel=0.02)


def test_the_projection_keeps_the_direction():
    x = torch.randn(50, 7, dtype=torch.float64)
    w = on_sphere(x)
    torch.testing.assert_close(w.norm(dim=-1), torch.full((50,), 7**0.5, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(F.cosine_similarity(w, x), torch.ones(50, dtype=torch.float64), rtol=1e-12, atol=0)


def test_nothing_but_the_actor_gets_the_actors_gradient():
    env = state_env()
    agent = make(env)
    env.decoder.base_policy.requires_grad_(True)
    agent.learn_actor(agent.encode(make_batch(agent, env), True))
    assert env.decoder.base_policy.a.grad is None
    assert all(p.grad is None for p in agent.q_action_loss.q_action_params.values(True, True))
    assert all(p.grad is not None for p in agent.actor.parameters())


class Blind(Leaning):
    """Says so."""

    differentiable = False


class Silent(Leaning):
    """Does not say so."""

    @torch.no_grad()
    def forward(self, observation, noise):
        return super().forward(observation, noise)


def test_a_decoder_without_gradient_is_refused():
    with pytest.raises(UserError, match="LPS needs a base policy that is differentiable in its noise, Blind is not"):
        make_agent(LPS, LatentActionEnv(PointReachEnv(num_envs=4), Blind(), gamma=0.875))
    agent = make_agent(LPS, LatentActionEnv(PointReachEnv(num_envs=4), Silent(), gamma=0.875))
    with pytest.raises(UserError, match="Silent is not differentiable in its noise, which LPS needs"):
        agent.update(make_batch(agent), every_part(agent))


@pytest.mark.parametrize("options", [{"exploration_noise": -0.1}, {"backup": "max"}, {"alpha_init": 0.1}])
def test_bad_options(options):
    with pytest.raises(UserError, match=next(iter(options))):
        LPS.Config(**options)
