"""Best-of-N (Eq. 18): the choice by brute force, and one update against the equations, written out."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.agents import BestOfN

from .cases import assert_close, make_agent, make_batch, make_transitions, members, polyak, state_env, step
from .cases import macro_target as target

N, TARGET_N, LR = 6, 3, 1e-3


def make(env=None, **options):
    agent = make_agent(BestOfN, env, candidates=N, target_candidates=TARGET_N, critic_lr=LR, **options)
    torch.manual_seed(3)
    for key, p in agent.q_action_loss.q_action_params.items(True, True):
        if "mlp" in key:
            p.data.add_(0.3 * torch.randn_like(p))  # critics that have learned something, unlike their targets
    return agent


def best_by_hand(agent, observations, candidates, backup):
    """One state and one candidate after the other."""
    loss = agent.q_action_loss
    noise = torch.randn(candidates, len(observations), agent.decoder.latent_dim)
    chosen = []
    for n in range(len(observations)):
        s, values = observations[n : n + 1], []
        for w in noise[:, n : n + 1]:
            q = members(loss.q_action, loss.q_action_params, agent.encoder(s.copy()), agent.decoder.decode(s, w))
            values.append(float(q.min() if backup == "min" else q.mean()))
        chosen.append(noise[max(range(candidates), key=values.__getitem__), n])
    return torch.stack(chosen)


@pytest.mark.parametrize("backup", ["min", "mean"])
def test_the_policy_chooses_the_best_of_n_prior_noises(backup):
    env = state_env()
    agent = make(env, backup=backup)
    observations = make_transitions(agent, env, 12).select("observation")
    torch.manual_seed(5)
    with torch.no_grad():
        expected = best_by_hand(agent, observations, N, backup)
    torch.manual_seed(5)
    assert torch.equal(agent.policy(observations.clone())["action"], expected)
    assert agent.kept_policy is agent.policy


@pytest.mark.parametrize("backup", ["min", "mean"])
def test_an_update_is_the_equations(backup):
    """The online critics choose the target's noise, the target critics say what it is worth."""
    agent, twin = make(backup=backup), make(backup=backup)
    transitions = make_transitions(agent)
    torch.manual_seed(5)
    batch = agent.prepare(transitions.unsqueeze(0))[0]
    metrics = agent.update(batch, agent.parts(0))

    loss, s = twin.q_action_loss, twin.encoder(transitions.copy())
    following = twin.encoder(transitions["next"].copy())
    torch.manual_seed(5)
    with torch.no_grad():
        w = best_by_hand(twin, transitions["next"].select("observation"), TARGET_N, backup)
        chunk = twin.decoder.decode(following, w)
        value = members(loss.q_action, loss.target_q_action_params, following, chunk)
    value = value.min(0)[0] if backup == "min" else value.mean(0)
    q = members(loss.q_action, loss.q_action_params, s, transitions["next", "action_chunk"])
    error = q - target(transitions, value)  # no entropy
    step(loss.q_action_params.values(True, True), error.square().mean(1).sum(), LR)
    polyak(loss.target_q_action_params, loss.q_action_params)
    torch.testing.assert_close(metrics["q_action/loss"], error.square().mean(1).sum().detach(), rtol=1e-4, atol=1e-5)
    assert_close(agent, twin)


def test_a_batch_is_prepared_with_one_choice_and_updated_without():
    """The candidates of several updates are decoded together, then what was chosen of them."""
    env, calls = state_env(), []
    agent = make(env)
    transitions = make_transitions(agent, env, 32)
    env.decoder.base_policy.register_forward_hook(lambda module, args, out: calls.append(out.shape[:-2]))
    batches = agent.prepare(torch.stack([transitions[:16], transitions[16:]]))
    assert calls == [(TARGET_N, 2, 16), (2, 16)]
    for batch in batches.unbind(0):
        agent.update(batch, agent.parts(0))
    assert len(calls) == 2


def test_one_candidate_is_the_prior():
    agent = make_agent(BestOfN, candidates=1)
    observations = make_batch(agent, n=16).select("observation")
    torch.manual_seed(5)
    w = agent.policy(observations)["action"]
    torch.manual_seed(5)
    assert torch.equal(w, torch.randn(1, 16, agent.decoder.latent_dim)[0])


def test_more_candidates_are_worth_more_to_the_critic():
    agent = make()
    observations = make_batch(agent, n=16).select("observation").expand(200, 16).reshape(-1)
    values = []
    for n in (1, 4, 16):
        with torch.no_grad():
            w = agent.choose(agent.encoder(observations.copy()), n)
            values.append(agent.noise_values(observations, w).min(0)[0].mean())
    assert values[0] < values[1] < values[2]
