"""TD3+BC (Eq. 27) against the equation, written out."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.agents import TD3BC

from .cases import assert_close, assert_logged, every_part, make_agent, make_batch, members, step

RATE = 3e-4


def make(**options):
    agent = make_agent(TD3BC, actor_lr=RATE, policy_noise=0.0, **options)
    torch.manual_seed(3)
    for p in agent.loss.actor_network_params.values(True, True):
        p.data.add_(0.5 * torch.randn_like(p))
    return agent


@pytest.mark.parametrize("alpha", [0.0, 2.5])
def test_the_actor_climbs_q_by_its_own_size_and_stays_near_the_data(alpha):
    agent, twin = make(alpha=alpha), make(alpha=alpha)
    batch = make_batch(agent)
    metrics = agent.update(batch, every_part(agent))
    twin.descend("q_noise", twin.critic_loss(twin.encode(batch))[0])  # TD3's, tested there
    s = twin.encoder(batch.copy())
    action = twin.actor(s.copy())["action"]
    q = members(twin.loss.qvalue_network, twin.loss.qvalue_network_params, s, action)
    lam = alpha / q[0].abs().mean().detach()
    cloning = (action - batch["action"]).square().mean()
    loss = -lam * q[0].mean() + cloning
    step(twin.actor.parameters(), loss, RATE)
    assert_logged(
        metrics, {"actor/loss": loss, "actor/bc_loss": cloning, "actor/lam": lam, "actor/q_mean": q[0].mean()}
    )
    for mine, theirs in zip(agent.actor.parameters(), twin.actor.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_larger_q_pulls_no_harder():
    """λ divides by mean |Q|: critics of a hundred times the size give the same gradient."""
    moved = []
    for factor in (1.0, 100.0):
        agent = make()
        for name, p in agent.loss.qvalue_network_params.flatten_keys(".").items():
            if name.split(".")[-2] == last_layer(agent):
                p.data.mul_(factor)
        batch = agent.encode(make_batch(agent))
        loss, _ = agent.loss.actor_loss(batch)
        moved.append(torch.autograd.grad(loss, [*agent.actor.parameters()]))
    for small, large in zip(*moved, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-6)


def last_layer(agent):
    return max(
        (name.split(".")[-2] for name in agent.loss.qvalue_network_params.flatten_keys(".").keys() if "mlp" in name),
        key=int,
    )


def test_without_q_it_is_cloning():
    agent = make(alpha=0.0)
    batch = agent.encode(make_batch(agent))
    loss, out = agent.loss.actor_loss(batch)
    assert out["lmbd"] == 0
    torch.testing.assert_close(loss.detach(), out["bc_loss"])


def test_an_update_is_repeatable():
    first, second = make(), make()
    batch = make_batch(first)
    for agent in (first, second):
        torch.manual_seed(5)
        agent.update(batch, every_part(agent))
    assert_close(first, second, rtol=0.0, atol=0.0)
