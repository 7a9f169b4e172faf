"""PPO on the noise (Eq. 35 and 36) against the equations, written out."""

from __future__ import annotations

import math

import pytest
import torch

from dsrl_torchrl.agents import PPO

from .cases import GAMMA, MAGNITUDE, assert_close, assert_logged, every_part, make_agent, state_env, step

RATES = {"critic_lr": 1e-3, "actor_lr": 3e-4}
CLIP, COEFFICIENT, LAMBDA = 0.1, 0.05, 0.8


def make(seed=0, **options):
    return make_agent(
        PPO, seed=seed, clip_epsilon=CLIP, entropy_coeff=COEFFICIENT, lmbda=LAMBDA, **RATES | options
    ).double()


def make_rollout(agent, steps=6):
    """``[4, steps]``: episodes end by success and by the time limit inside of it; macro steps of 1 or 2 env steps."""
    torch.manual_seed(1)
    with torch.no_grad():
        rollout = state_env().rollout(steps, agent.policy.float(), break_when_any_done=False)
    agent.double()
    rollout = rollout.apply(lambda x: x.double() if x.is_floating_point() else x)
    following = rollout["next"]
    following["reward"] = torch.randn(4, steps, 1, dtype=torch.float64)
    following["chunk_steps"] = torch.randint(1, 3, (4, steps, 1))
    following["terminated"] = torch.rand(4, steps, 1) < 0.15
    following["truncated"] = (torch.rand(4, steps, 1) < 0.3) & ~following["terminated"]
    following["done"] = following["terminated"] | following["truncated"]
    assert following["terminated"][:, :-1].any() and following["truncated"][:, :-1].any()
    return rollout


def value(agent, observations):
    return agent.noise_values(observations, torch.zeros(*observations.batch_size, 4))[0].detach()


def test_advantages_are_gae_with_macro_discounts():
    """A time limit bootstraps from its own s', not from the next episode's start, and ends the sum of errors."""
    agent = make()
    rollout = make_rollout(agent)
    finished = agent.finish_rollout(rollout)
    assert set(finished.keys()) - set(rollout.keys()) == {"advantage", "value_target"}
    following = rollout["next"]
    v, v_next = value(agent, rollout), value(agent, following)
    for env in range(4):
        later = 0.0
        for t in reversed(range(rollout.shape[1])):
            discount = GAMMA ** int(following["chunk_steps"][env, t])
            bootstrap = 0.0 if following["terminated"][env, t] else discount * v_next[env, t]
            delta = following["reward"][env, t, 0] + bootstrap - v[env, t]
            later = delta + (0.0 if following["done"][env, t] else discount * LAMBDA * later)
            torch.testing.assert_close(finished["advantage"][env, t, 0], later, rtol=1e-6, atol=1e-7)
            target = later + v[env, t]
            torch.testing.assert_close(finished["value_target"][env, t, 0], target, rtol=1e-6, atol=1e-7)


def density(agent, features, w):
    """``log π(w | s)`` by hand, and the Gaussian's parameters."""
    loc, scale = agent.actor.module[0].module(features)
    loc = 5 * torch.tanh(loc / 5)
    u = torch.atanh(w / MAGNITUDE)
    normal = -0.5 * ((u - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    return (normal - math.log(MAGNITUDE) - torch.log(1 - torch.tanh(u) ** 2)).sum(-1), loc, scale


def by_hand(agent, batch):
    """Makes the update with plain Adams on ``agent``'s parameters; returns what should have been logged."""
    features = agent.encoder(batch.copy())["features"]
    with agent.loss.critic_network_params.to_module(agent.loss.critic_network):
        predicted = agent.loss.critic_network.module(features)
    loss = (predicted - batch["value_target"]).square().mean()
    explained = 1 - (batch["value_target"] - predicted).var(correction=0) / batch["value_target"].var(correction=0)
    step(agent.loss.critic_network_params.values(True, True), loss, RATES["critic_lr"])
    expected = {
        "value/loss": loss,
        "value/explained_variance": explained,
        "value/target_mean": batch["value_target"].mean(),
    }

    advantage = batch["advantage"].squeeze(-1)
    advantage = (advantage - advantage.mean()) / advantage.std()
    log_prob, loc, scale = density(agent, features, batch["action"])
    ratio = (log_prob - batch["sample_log_prob"]).exp()
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    assert 0 < (ratio != clipped).sum() < len(ratio)
    objective = torch.minimum(ratio * advantage, clipped * advantage).mean()
    drawn = MAGNITUDE * torch.tanh(loc + scale * torch.randn(1, *loc.shape, dtype=loc.dtype)[0])
    entropy = -density(agent, features, drawn)[0].mean()
    loss = -objective - COEFFICIENT * entropy
    step(agent.actor.parameters(), loss, RATES["actor_lr"])
    kl = (batch["sample_log_prob"] - log_prob).mean()
    expected |= {"actor/loss": loss, "actor/entropy": entropy, "actor/kl": kl}
    return expected | {"actor/clip_fraction": (ratio != clipped).double().mean()}


def test_an_update_is_the_equations():
    agent, twin = make(), make()
    batch = agent.finish_rollout(make_rollout(agent)).reshape(-1)
    for learner in (agent, twin):  # the policy has moved on since it acted
        torch.manual_seed(3)
        for p in learner.actor.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    torch.manual_seed(5)
    metrics = agent.update(batch, every_part(agent))
    torch.manual_seed(5)
    assert_logged(metrics, {name: value.double() for name, value in by_hand(twin, batch).items()})
    assert_close(agent, twin)


@pytest.mark.parametrize("mean", [0.0, 4.9])
def test_an_unchanged_policy_has_ratios_of_one(mean):
    """In float32, and where the tanh saturates, too."""
    agent = make().float()
    dim = agent.decoder.latent_dim
    agent.actor.module[0].module[1].bias.data[:dim] = mean * 2
    torch.manual_seed(2)
    with torch.no_grad():
        rollout = state_env().rollout(40, agent.policy, break_when_any_done=False)
        assert (rollout["action"].abs() > 0.999 * MAGNITUDE).any() == (mean > 0)
        out = agent.loss(agent.prepare(agent.finish_rollout(rollout).reshape(1, -1))[0])
    assert out["clip_fraction"] == 0 and out["max_ratio"].item() == pytest.approx(1, abs=1e-4)


def test_all_noises_of_a_state_are_worth_the_same():
    agent = make_agent(PPO)
    observations = state_env().reset().select("observation")
    values = agent.noise_values(observations.expand(3, 4), torch.randn(3, 4, 4))
    assert values.shape == (1, 3, 4) and torch.equal(values[0, 0], values[0, 1])
