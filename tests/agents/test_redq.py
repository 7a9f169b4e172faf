"""REDQ on the noise (Eq. 37) against the equations, written out."""

from __future__ import annotations

import math

import pytest
import torch

from dsrl_torchrl.agents import REDQ
from dsrl_torchrl.errors import UserError

from .cases import MAGNITUDE, assert_close, assert_logged, every_part, make_agent, make_batch, members, polyak, step
from .cases import macro_target as target

RATES = {"critic_lr": 1e-3, "actor_lr": 3e-4, "alpha_lr": 1e-2}
N, CHOSEN = 4, 2


def make(**options):
    return make_agent(
        REDQ, networks={"num_critics": N}, **RATES | {"target_critics": CHOSEN, "alpha_init": 0.05} | options
    )


def draws(agent, s, following):
    """The members of the target, then noises at s and s' of one draw."""
    chosen = torch.randperm(N)[:CHOSEN].sort()[0]
    parameters = [agent.actor.module[0].module(td["features"]) for td in (s, following)]
    loc, scale = (torch.stack(pair) for pair in zip(*parameters, strict=True))
    loc = 5 * torch.tanh(loc / 5)
    u = loc + scale * torch.randn_like(loc)
    log_prob = -0.5 * ((u - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    log_prob = (log_prob - math.log(MAGNITUDE) - torch.log(1 - torch.tanh(u) ** 2)).sum(-1)
    return chosen, MAGNITUDE * torch.tanh(u), log_prob


def by_hand(agent, batch, with_actor):
    """Makes the update with plain Adams on ``agent``'s parameters; returns what should have been logged."""
    loss, s, following = agent.loss, agent.encoder(batch.copy()), agent.encoder(batch["next"].copy())
    critic, params, alpha = loss.qvalue_network, loss.qvalue_network_params, loss.log_alpha.exp().detach()
    chosen, w, log_prob = draws(agent, s, following)
    values = members(critic, loss.target_qvalue_network_params, following, w[1])
    y = target(batch, values[chosen].min(0)[0] - alpha * log_prob[1])
    q = members(critic, params, s, batch["action"])
    loss_td = (q - y).square().mean()  # of all members: each learns from the same target
    step(params.values(True, True), loss_td, RATES["critic_lr"])
    expected = {"q_noise/loss": loss_td, "q_noise/td_error": (q - y).abs().max(0)[0].mean(), "q_noise/q_mean": q.mean()}
    if with_actor:
        _, w, log_prob = draws(agent, s, following)
        q = members(critic, params, s, w[0])  # the mean over all members
        loss_actor = (alpha * log_prob[0] - q.mean(0)).mean()
        entropy = agent.decoder.latent_dim * (-0.5 + math.log(MAGNITUDE))
        loss_alpha = -(loss.log_alpha.exp() * (log_prob.detach() + entropy)).mean()  # TorchRL's, at s and s'
        step(agent.actor.parameters(), loss_actor, RATES["actor_lr"])
        step([loss.log_alpha], loss_alpha, RATES["alpha_lr"])
        expected |= {"actor/loss": loss_actor, "actor/q_mean": q.mean(), "actor/entropy": -log_prob[0].mean()}
        expected |= {"actor/alpha_loss": loss_alpha, "actor/alpha": loss.log_alpha.exp()}
        for average, new in zip(agent.average.parameters(), agent.actor.parameters(), strict=True):
            average.data.copy_(new.data)
        agent.averaged.fill_(1.0)
    polyak(loss.target_qvalue_network_params, params)
    return expected


@pytest.mark.parametrize("with_actor", [True, False])
@pytest.mark.parametrize("seed", [5, 6])  # other members
def test_an_update_is_the_equations(with_actor, seed):
    agent, twin = make(), make()
    batch = make_batch(agent)
    torch.manual_seed(seed)
    metrics = agent.update(batch, every_part(agent) if with_actor else frozenset({"critic"}))
    torch.manual_seed(seed)
    assert_logged(metrics, by_hand(twin, batch, with_actor))
    assert_close(agent, twin)


def test_the_temperature_may_fall_below_torchrls_bound():
    assert make(alpha_init=1e-3).loss.alpha.item() == pytest.approx(1e-3)


def test_a_target_takes_some_of_the_members():
    with pytest.raises(UserError, match=r"target_critics \(4\) must be below networks.num_critics \(4\)"):
        make(target_critics=4)
    with pytest.raises(UserError, match=r"algorithm.compile=false"):
        make(compile=True)
