"""AWR (Eq. 28) against the equation, written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from dsrl_torchrl.agents import AWR
from dsrl_torchrl.agents.awr import awr_weights, effective_share

from .cases import MAGNITUDE, assert_logged, every_part, macro_target, make_agent, make_batch, members, step

RATES = {"critic_lr": 1e-3, "actor_lr": 3e-4}


def log_density(loc, scale, action):
    """Of ``c tanh(u)``, ``u ~ N(loc, scale)``, with TorchRL's bound on the mean: by the change of variables."""
    u = torch.atanh(action / MAGNITUDE)
    log_prob = Normal(5 * torch.tanh(loc / 5), scale).log_prob(u) - torch.log(MAGNITUDE * (1 - torch.tanh(u) ** 2))
    return log_prob.sum(-1)


@pytest.mark.parametrize("max_weight", [1e6, 1.5])
@pytest.mark.parametrize("backup", ["min", "mean"])
def test_an_update_is_the_equations(max_weight, backup):
    keep = (lambda q: q.min(0)[0]) if backup == "min" else (lambda q: q.mean(0))
    options = {"weight_temperature": 0.5, "max_weight": max_weight, "backup": backup, **RATES}
    agent, twin = (make_agent(AWR, **options) for _ in range(2))
    batch = make_batch(agent)
    batch["action"] = batch["action"].clamp(-1.2, 1.2)
    torch.manual_seed(5)
    metrics = agent.update(batch, every_part(agent))

    torch.manual_seed(5)
    s, following = twin.encoder(batch.copy()), twin.encoder(batch["next"].copy())
    critic, params = twin.sac.qvalue_network, twin.sac.qvalue_network_params
    drawn, _ = twin.actor.draw(following)
    value = keep(members(critic, twin.sac.target_qvalue_network_params, following, drawn))  # no entropy
    q = members(critic, params, s, batch["action"])
    error = q - macro_target(batch, value)
    loss_td = error.square().mean(1).sum()
    step(params.values(True, True), loss_td, RATES["critic_lr"])
    drawn, log_prob = twin.actor.draw(s)
    own = keep(members(critic, params, s, drawn)).detach()
    advantage = keep(members(critic, params, s, batch["action"])).detach() - own
    z = (advantage - advantage.mean()) / advantage.var(correction=0).sqrt()
    weights = torch.exp(z / 0.5).clamp(max=max_weight)
    assert bool((weights == max_weight).any()) == (max_weight == 1.5)
    loc, scale = twin.actor.module[0].module(s["features"])
    data_log_prob = log_density(loc, scale, batch["action"])
    loss = -(weights * data_log_prob).mean()
    step(twin.actor.parameters(), loss, RATES["actor_lr"])
    share = weights.sum() ** 2 / (16 * (weights**2).sum())
    expected = {"actor/loss": loss, "actor/advantage": advantage.mean(), "actor/weights_mean": weights.mean()}
    expected |= {"actor/weights_max": weights.max(), "actor/effective_share": share, "actor/entropy": -log_prob.mean()}
    expected |= {"q_noise/loss": loss_td, "actor/bc_loss": -data_log_prob.mean(), "actor/q_mean": own.mean()}
    assert_logged(metrics, expected)
    for mine, theirs in zip(agent.actor.parameters(), twin.actor.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_weights_of_normal_advantages_have_their_closed_form():
    """Whatever the size of the advantages: a mean of 1.65 and an effective share of e^-1 say nothing of uniformity."""
    torch.manual_seed(0)
    z = torch.randn(1_000_000)
    for scale in (1e-3, 1.0, 100.0):
        weights = awr_weights(scale * z - 3.0, 1.0, 1e6)
        assert weights.mean().item() == pytest.approx(math.exp(0.5), rel=0.01)
        assert effective_share(weights).item() == pytest.approx(math.exp(-1), rel=0.05)


def test_equal_advantages_and_a_hot_temperature_make_it_cloning():
    assert torch.equal(awr_weights(torch.full((8,), 2.0), 1.0, 20.0), torch.ones(8))
    torch.testing.assert_close(awr_weights(torch.randn(8), 1e6, 20.0), torch.ones(8), atol=1e-5, rtol=0.0)
    assert effective_share(torch.ones(8)) == 1 and effective_share(torch.eye(8)[0]) == 1 / 8
