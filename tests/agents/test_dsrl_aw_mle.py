"""One update of DSRL-AW-MLE against the equations, written out; its schedule; what it decodes, and when."""

from __future__ import annotations

import math

import pytest
import torch

from dsrl_torchrl.agents import DSRLAWMLE
from dsrl_torchrl.objectives.aw_mle import truncated_prior

from .cases import (
    MAGNITUDE,
    assert_close,
    assert_logged,
    every_part,
    make_agent,
    make_batch,
    make_transitions,
    members,
    polyak,
    state_env,
    step,
)
from .cases import macro_target as target

RATES = {"critic_lr": 1e-3, "actor_lr": 3e-4}
M, BETA, TAU_BASELINE, STATES = 8, 3.0, 0.4, 12
ACTOR = {"m_candidates": M, "beta_latent": BETA, "tau_baseline": TAU_BASELINE, "actor_batch_size": STATES}
#: 12 of 32 states, evenly spaced: online transitions come first in a batch, offline ones last; both stay in proportion.
READ = [0, 2, 5, 8, 10, 13, 16, 18, 21, 24, 26, 29]


def by_hand(agent, batch, parts):
    """Makes the update with plain Adams on ``agent``'s parameters; returns what should have been logged."""
    td, distilled = agent.q_action_loss, agent.aliasing_loss
    s, following = agent.encoder(batch.copy()), agent.encoder(batch["next"].copy())
    value = members(td.q_action, td.target_q_action_params, following, batch["next", "chunk"]).mean(0)  # Eq. 12, α = 0
    q = members(td.q_action, td.q_action_params, s, batch["next", "action_chunk"])
    loss = (q - target(batch, value)).square().mean(1).sum()
    step(td.q_action_params.values(True, True), loss, RATES["critic_lr"])
    expected = {"q_action/loss": loss}
    if "distil" in parts:  # Eq. 13, at a pair that was decoded before
        teacher = members(td.q_action, td.q_action_params, s, batch["pair_chunk"]).detach()
        student = members(distilled.q_noise, distilled.q_noise_params, s, batch["pair_noise"])
        loss = (student - teacher).square().mean(1).sum()
        step(distilled.q_noise_params.values(True, True), loss, RATES["critic_lr"])
        expected |= {"q_noise/loss": loss, "q_noise/q_mean": student.mean()}
    if "actor" in parts:  # Eq. 14 and 15
        some = s[READ]
        w = truncated_prior(M, STATES, agent.decoder.latent_dim, bound=MAGNITUDE, like=some["features"])
        with torch.no_grad():
            params = distilled.q_noise_params
            q = torch.stack([members(distilled.q_noise, params, some, w[i]).mean(0) for i in range(M)])  # (M, STATES)
            baseline = TAU_BASELINE * torch.log(torch.exp(q / TAU_BASELINE).mean(0))
            omega = torch.exp(BETA * (q - baseline)) / M
        log_pi = agent.actor.get_dist(some).log_prob(w)
        loss = -(omega * log_pi).sum(0).mean()
        step(agent.actor.parameters(), loss, RATES["actor_lr"])
        expected |= {
            "actor/loss": loss,
            "actor/effective_candidates": (omega.sum(0) ** 2 / (omega**2).sum(0)).mean(),
            "actor/advantage": ((omega * q).sum(0) / omega.sum(0) - q.mean(0)).mean(),
        }
        for average, new in zip(agent.average.parameters(), agent.actor.parameters(), strict=True):
            average.data.copy_(new.data)  # the first of the average
        agent.averaged.fill_(1.0)
    polyak(td.target_q_action_params, td.q_action_params)  # Eq. 11
    return expected


@pytest.mark.parametrize(
    "parts", [{"critic"}, {"critic", "distil"}, {"critic", "actor"}, {"critic", "distil", "actor"}]
)
def test_an_update_is_the_equations(parts):
    agent, twin = (make_agent(DSRLAWMLE, **RATES, **ACTOR) for _ in range(2))
    batch = make_batch(agent, n=32)
    torch.manual_seed(5)
    metrics = agent.update(batch, frozenset(parts))
    torch.manual_seed(5)
    expected = by_hand(twin, batch, parts)
    assert_logged(metrics, expected)
    assert ("q_noise/loss" in metrics.keys(), "actor/loss" in metrics.keys()) == ("distil" in parts, "actor" in parts)
    assert_close(agent, twin)


def test_a_small_batch_is_read_whole(monkeypatch):
    agent = make_agent(DSRLAWMLE, actor_batch_size=64)
    batch, read = make_batch(agent), []
    whole = agent.actor_loss.forward
    monkeypatch.setattr(agent.actor_loss, "forward", lambda td: read.append(td["observation"]) or whole(td))
    agent.update(batch, every_part(agent))
    assert torch.equal(read[0], batch["observation"])


def test_the_schedule():
    agent = make_agent(DSRLAWMLE, critic_only_updates=5, actor_interval=4, distillation_interval=3)
    parts = [agent.parts(update) for update in range(14)]
    assert [update for update, part in enumerate(parts) if "actor" in part] == [8, 12]
    assert [update for update, part in enumerate(parts) if "distil" in part] == [0, 3, 6, 9, 12]
    assert all("critic" in part for part in parts)


def test_it_has_no_temperature():
    agent = make_agent(DSRLAWMLE)
    assert agent.temperature() == 0.0 and set(agent.optimisers) == {"q_action", "q_noise", "actor"}
    assert not any("alpha" in name for name in agent.state_dict())


@pytest.mark.parametrize("online", [True, False])
def test_pairs_are_decoded_when_a_transition_is_stored(online):
    env = state_env()
    agent = make_agent(DSRLAWMLE, env, decoded_pairs=4, executed_share=0.25)
    transitions = make_transitions(agent, env).exclude("pair_noise", "pair_chunk")
    stored = agent.store(transitions.clone(), online=online)
    w, chunk = stored["pair_noise"], stored["pair_chunk"]
    assert w.shape == (16, 4, 4) and chunk.shape == (16, 4, 2, 2)
    executed = 1 if online else 0  # offline data may have no noise
    if online:
        assert torch.equal(w[:, 0], transitions["action"])
        assert torch.equal(chunk[:, 0], transitions["next", "action_chunk"])
    decoded = env.decoder.decode(transitions.unsqueeze(1).expand(16, 4), w)
    torch.testing.assert_close(chunk[:, executed:], decoded[:, executed:])
    assert agent.store(transitions.exclude("action"), online=False)["pair_noise"].isfinite().all()


def test_without_pairs_a_fresh_noise_is_decoded_at_every_update():
    agent = make_agent(DSRLAWMLE, decoded_pairs=0)
    batch = make_batch(agent)
    assert "pair_noise" not in batch.keys()
    assert agent.update(batch, every_part(agent))["q_noise/loss"].isfinite()


def test_a_batch_is_prepared_with_one_decode_and_updated_without():
    env = state_env()
    agent, untrained = make_agent(DSRLAWMLE, env), make_agent(DSRLAWMLE, env)
    transitions, calls = make_transitions(agent, env, 32), []
    policy = env.decoder.base_policy
    policy.register_forward_hook(lambda module, args, out: calls.append(out.shape[:-2]))
    torch.manual_seed(5)
    batches = agent.prepare(torch.stack([transitions[:16], transitions[16:]]))
    assert calls == [(2, 16)]
    for batch in batches.unbind(0):
        agent.update(batch, every_part(agent))
    assert len(calls) == 1
    # By hand: which pair each transition got, then the latent policy's noise at s'.
    torch.manual_seed(5)
    choice = torch.randint(4, (2, 16)).flatten()
    picked = transitions["pair_noise"][torch.arange(32), choice].unflatten(0, (2, 16))
    assert torch.equal(batches["pair_noise"], picked)
    following = agent.encoder(transitions["next"].select("observation").unflatten(0, (2, 16)))
    loc, scale = untrained.actor.module[0].module(following["features"])
    noise = MAGNITUDE * torch.tanh(5 * torch.tanh(loc / 5) + scale * torch.randn_like(loc))
    torch.testing.assert_close(
        batches["next", "chunk"], env.decoder.decode(following, noise).detach(), rtol=1e-4, atol=1e-5
    )


def test_candidates_are_at_most_as_good_as_the_best_of_m():
    """No exponent exceeds β τ log M."""
    agent = make_agent(DSRLAWMLE, **ACTOR)
    q = 50 * torch.randn(M, 100)
    assert agent.actor_loss.weights(q).max() <= M ** (BETA * TAU_BASELINE) / M * (1 + 1e-5)
    assert math.isclose(float(agent.actor_loss.weights(torch.zeros(M, 1)).sum()), 1.0, rel_tol=1e-6)


def test_it_narrows_linearly_in_the_last_fifth_of_the_env_steps():
    agent = make_agent(DSRLAWMLE, final_spread=0.2)
    for share, expected in ((0.0, 1.0), (0.8, 1.0), (0.9, 0.6), (1.0, 0.2)):
        agent.advance(share)
        for actor in (agent.actor, agent.kept_policy.actor):
            torch.testing.assert_close(actor.spread, torch.tensor(expected))
    assert agent.tensors()["kept_actor"]["module.0.module.3.share"] == 0.2  # a run keeps it
