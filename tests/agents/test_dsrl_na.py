"""One update of DSRL-NA against the equations, written out: TD, distillation, actor, temperature, targets."""

from __future__ import annotations

import math

import pytest
import torch

from dsrl_torchrl.agents import DSRLNA
from dsrl_torchrl.errors import UserError

from .cases import (
    MAGNITUDE,
    assert_close,
    assert_logged,
    every_part,
    make_agent,
    make_batch,
    members,
    polyak,
    state,
    step,
)
from .cases import macro_target as target

RATES = {"critic_lr": 1e-3, "actor_lr": 3e-4, "alpha_lr": 1e-2}


def by_hand(agent, batch, backup="min", with_actor=True, cap=None):
    """Makes the update with plain Adams on ``agent``'s parameters; returns what should have been logged."""
    keep = (lambda q: q.min(0)[0]) if backup == "min" else (lambda q: q.mean(0))
    decode, td, distilled = agent.decoder.decode, agent.q_action_loss, agent.aliasing_loss
    s, following = agent.encoder(batch.copy()), agent.encoder(batch["next"].copy())

    w, log_prob = agent.actor.get_dist(following).rsample_and_log_prob()  # Eq. 12
    value = keep(members(td.q_action, td.target_q_action_params, following, decode(following, w)))
    if cap is not None:
        log_prob = torch.maximum(log_prob, torch.tensor(-cap - agent.decoder.latent_dim * math.log(MAGNITUDE)))
    y = target(batch, value - agent.sac.log_alpha.exp() * log_prob)
    q = members(td.q_action, td.q_action_params, s, batch["next", "action_chunk"])
    loss_td = (q - y).square().mean(1).sum()
    step(td.q_action_params.values(True, True), loss_td, RATES["critic_lr"])

    w = torch.randn(len(batch), agent.decoder.latent_dim)  # Eq. 13
    teacher = members(td.q_action, td.q_action_params, s, decode(s, w)).detach()
    student = members(distilled.q_noise, distilled.q_noise_params, s, w)
    loss_distil = (student - teacher).square().mean(1).sum()
    step(distilled.q_noise_params.values(True, True), loss_distil, RATES["critic_lr"])
    expected = {
        "q_action/loss": loss_td,
        "q_action/td_error": (q - y).abs().max(0)[0].mean(),
        "q_noise/loss": loss_distil,
    }

    if with_actor:  # Eq. 9 and 10
        w, log_prob = agent.actor.get_dist(s).rsample_and_log_prob()
        q = keep(members(distilled.q_noise, distilled.q_noise_params, s, w))
        alpha = agent.sac.log_alpha.exp().detach()
        loss_actor = (alpha * log_prob - q).mean()
        step(agent.actor.parameters(), loss_actor, RATES["actor_lr"])
        entropy = agent.decoder.latent_dim * (-0.5 + math.log(MAGNITUDE))
        loss_alpha = -(agent.sac.log_alpha * (log_prob.detach() + entropy)).mean()
        step([agent.sac.log_alpha], loss_alpha, RATES["alpha_lr"])
        expected |= {"actor/loss": loss_actor, "actor/entropy": -log_prob.mean(), "actor/q_mean": q.mean()}
        expected |= {"actor/alpha_loss": loss_alpha, "actor/alpha": agent.sac.log_alpha.exp()}
    polyak(td.target_q_action_params, td.q_action_params)  # Eq. 11
    return expected


@pytest.mark.parametrize("backup", ["min", "mean"])
@pytest.mark.parametrize("with_actor", [True, False])
def test_an_update_is_the_equations(backup, with_actor):
    agent, twin = (make_agent(DSRLNA, backup=backup, **RATES) for _ in range(2))
    batch, before = make_batch(agent), state(agent)
    torch.manual_seed(5)
    metrics = agent.update(batch, every_part(agent) if with_actor else frozenset({"critic"}))
    torch.manual_seed(5)
    expected = by_hand(twin, batch, backup, with_actor)
    assert_logged(metrics, expected)
    assert_close(agent, twin)
    assert any(not torch.equal(value, before[name]) for name, value in state(agent).items())


@pytest.mark.parametrize("cap", [-1.0, 100.0])
def test_a_cap_of_the_entropy_is_that_of_the_td_target(cap):
    """All decisions are capped at -1, none at 100."""
    options = {"alpha_init": 0.5, **RATES}
    agent, twin, free = (make_agent(DSRLNA, **options, **more) for more in ({"entropy_cap": cap},) * 2 + ({},))
    batch, metrics = make_batch(agent), []
    for learner in (agent, free):
        torch.manual_seed(5)
        metrics.append(learner.update(batch, every_part(agent)))
    torch.manual_seed(5)
    assert_logged(metrics[0], by_hand(twin, batch, cap=cap))
    assert_close(agent, twin)
    assert torch.equal(metrics[0]["q_action/loss"], metrics[1]["q_action/loss"]) == (cap == 100.0)


def test_a_td_target_without_the_entropy():
    """RLinf's and dsrl_pi0's: it is the same at every temperature."""
    agents, losses = [make_agent(DSRLNA, backup_entropy=False, alpha_init=alpha) for alpha in (0.01, 0.5)], []
    batch = make_batch(agents[0])
    for agent in agents:
        torch.manual_seed(5)
        losses.append(agent.update(batch, frozenset({"critic"}))["q_action/loss"])
    assert torch.equal(*losses)


def test_a_td_target_has_the_temperature_as_it_is_now():
    agent, twin = (make_agent(DSRLNA, alpha_init=alpha) for alpha in (0.01, 0.5))
    batch, losses = make_batch(agent), []
    agent.q_action_loss(agent.encode(batch))  # before it has adapted
    agent.sac.log_alpha.data.copy_(twin.sac.log_alpha)
    for learner in (agent, twin):
        torch.manual_seed(5)
        losses.append(learner.update(batch, frozenset({"critic"}))["q_action/loss"])
    torch.testing.assert_close(*losses)


def test_a_fixed_temperature_stays():
    agent = make_agent(DSRLNA, fixed_alpha=True, alpha_init=0.2)
    metrics = agent.update(make_batch(agent), every_part(agent))
    assert "actor/alpha_loss" not in metrics.keys()
    assert metrics["actor/alpha"].item() == pytest.approx(0.2)


def test_fresh_noises_are_distilled_and_nothing_is_stored():
    agent = make_agent(DSRLNA)
    batch = make_batch(agent)
    assert not {"pair_noise", "pair_chunk"} & set(batch.keys())
    assert ("next", "chunk") not in batch.keys(True)


def test_actor_and_distillation_share_one_noise_critic():
    agent = make_agent(DSRLNA)
    assert agent.aliasing_loss.q_noise_params is agent.sac.qvalue_network_params
    assert set(agent.optimisers) == {"q_action", "q_noise", "actor", "alpha"}
    assert make_agent(DSRLNA).kept_policy.actor is not None


def test_as_published_the_last_actor_is_kept():
    agent = make_agent(DSRLNA)
    assert agent.kept_policy.actor is agent.actor


def test_an_option_that_its_critics_have_not_is_refused():
    with pytest.raises(UserError, match="target_subset"):
        make_agent(DSRLNA, target_subset=2)
