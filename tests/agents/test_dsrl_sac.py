"""One update of DSRL-SAC against the equations, written out."""

from __future__ import annotations

import math

import pytest
import torch

from dsrl_torchrl.agents import DSRLSAC

from .cases import MAGNITUDE, assert_close, assert_logged, every_part, make_agent, make_batch, members, polyak, step
from .cases import macro_target as target

RATES = {"critic_lr": 1e-3, "actor_lr": 3e-4, "alpha_lr": 1e-2}


def by_hand(agent, batch, with_actor):
    """Makes the update with plain Adams on ``agent``'s parameters; returns what should have been logged."""
    critic, params, targets = (
        agent.sac.qvalue_network, agent.sac.qvalue_network_params, agent.sac.target_qvalue_network_params
    )  # fmt: skip
    s, following = agent.encoder(batch.copy()), agent.encoder(batch["next"].copy())
    w, log_prob = agent.actor.get_dist(following).rsample_and_log_prob()  # Eq. 8
    value = members(critic, targets, following, w).min(0)[0] - agent.sac.log_alpha.exp() * log_prob
    q = members(critic, params, s, batch["action"])
    error = q - target(batch, value)
    loss = error.square().mean(1).sum()
    step(params.values(True, True), loss, RATES["critic_lr"])
    expected = {"q_noise/loss": loss, "q_noise/td_error": error.abs().max(0)[0].mean(), "q_noise/q_mean": q.mean()}
    expected |= {"q_noise/q_std": q.std()}
    if with_actor:  # Eq. 9 and 10
        w, log_prob = agent.actor.get_dist(s).rsample_and_log_prob()
        q = members(critic, params, s, w).min(0)[0]
        loss = (agent.sac.log_alpha.exp().detach() * log_prob - q).mean()
        step(agent.actor.parameters(), loss, RATES["actor_lr"])
        entropy = agent.decoder.latent_dim * (-0.5 + math.log(MAGNITUDE))
        loss_alpha = -(agent.sac.log_alpha * (log_prob.detach() + entropy)).mean()
        step([agent.sac.log_alpha], loss_alpha, RATES["alpha_lr"])
        expected |= {"actor/loss": loss, "actor/entropy": -log_prob.mean(), "actor/q_mean": q.mean()}
        expected |= {"actor/alpha_loss": loss_alpha, "actor/alpha": agent.sac.log_alpha.exp()}
        for average, new in zip(agent.average.parameters(), agent.actor.parameters(), strict=True):
            average.data.copy_(new.data)  # the first of the average
        agent.averaged.fill_(1.0)
    polyak(targets, params)  # Eq. 11
    return expected


@pytest.mark.parametrize("with_actor", [True, False])
def test_an_update_is_the_equations(with_actor):
    agent, twin = (make_agent(DSRLSAC, **RATES) for _ in range(2))
    batch = make_batch(agent)
    torch.manual_seed(5)
    metrics = agent.update(batch, every_part(agent) if with_actor else frozenset({"critic"}))
    torch.manual_seed(5)
    expected = by_hand(twin, batch, with_actor)
    assert_logged(metrics, expected)
    assert_close(agent, twin)


def test_it_never_decodes():
    """The frozen policy runs in the env alone: what SAC learns from is noise."""
    agent = make_agent(DSRLSAC)
    batch = make_batch(agent)
    agent.decoder.decode = None
    agent.update(batch, every_part(agent))
    assert agent.chunk_values(batch, batch["next", "action_chunk"]) is None
