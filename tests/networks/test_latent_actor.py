"""The latent policy (Eq. 7): what it is at first, that its density is one, and how it acts on named entries."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.networks.critics import make_q_noise
from dsrl_torchrl.networks.encoders import ObservationEncoder, StateEncoder
from dsrl_torchrl.networks.latent_actor import ClippedLogStd, LatentActor, LatentPolicy

FEATURES, DIM, MAGNITUDE = 5, 3, 1.2
SIZES = {"num_cells": (16, 16), "activation": nn.Tanh}


def make_actor(latent_dim=DIM, initial_std=0.5):
    return LatentActor(FEATURES, latent_dim, MAGNITUDE, **SIZES, initial_std=initial_std)


def features(*batch):
    return TensorDict({"features": torch.randn(*batch, FEATURES)}, batch)


def test_the_first_policy_is_zero_mean_noise_of_the_asked_width():
    torch.manual_seed(0)
    actor, td = make_actor(initial_std=0.3), features(5000)
    with set_exploration_type(ExplorationType.RANDOM):
        w = actor(td.clone())["action"].detach()
    assert w.abs().max() <= MAGNITUDE
    assert w.std() == pytest.approx(MAGNITUDE * 0.28, abs=0.02)  # tanh narrows 0.3 a little
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert actor(td.clone())["action"].abs().max() < 0.05


def test_any_leading_dims():
    td = make_actor()(features(2, 4))
    assert td["action"].shape == (2, 4, DIM)
    assert make_q_noise(FEATURES, DIM, MAGNITUDE, **SIZES, layer_norm=True)(td)["state_action_value"].shape == (2, 4, 1)


def test_log_prob_is_a_density_over_the_box():
    """Integrates to one over ±magnitude, one dimension, by the trapezoid rule."""
    actor = make_actor(latent_dim=1, initial_std=0.8)
    grid = torch.linspace(-1.2 + 1e-4, 1.2 - 1e-4, 20001).unsqueeze(-1)
    td = TensorDict({"features": torch.zeros(1, FEATURES)}, [1])
    density = actor.get_dist(td).log_prob(grid.unsqueeze(1)).exp().reshape(-1).detach()
    assert torch.trapezoid(density, grid.squeeze(-1)).item() == pytest.approx(1.0, abs=1e-3)


def test_its_distribution_is_torchrls():
    """:meth:`get_dist` takes a short cut past the tensordict."""
    torch.manual_seed(0)
    actor, td = make_actor(), features(7)
    for p in actor.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    short, whole = actor.get_dist(td), super(LatentActor, actor).get_dist(td.clone())
    w = whole.sample()
    torch.testing.assert_close(short.log_prob(w), whole.log_prob(w))
    torch.testing.assert_close(short.deterministic_sample, whole.deterministic_sample)


def test_a_draw_and_its_density_belong_together():
    torch.manual_seed(0)
    dist = make_actor().get_dist(features(50))
    w, log_prob = dist.rsample_and_log_prob()
    assert w.requires_grad and log_prob.requires_grad
    torch.testing.assert_close(log_prob, dist.log_prob(w.detach()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [0.3, 30.0], ids=["usual", "saturated"])
def test_draw_is_the_distributions_own(scale):
    """Values and gradients; for a saturated noise, too, which the distribution keeps a millionth inside the bound."""
    torch.manual_seed(0)
    actor, td = make_actor(), features(50)
    for p in actor.parameters():
        p.data.add_(scale * torch.randn_like(p))
    results = []
    for draw in (lambda: actor.get_dist(td).rsample_and_log_prob(), lambda: actor.draw(td)):
        torch.manual_seed(1)
        w, log_prob = draw()
        results.append((w, log_prob, *torch.autograd.grad(w.sum() + log_prob.sum(), list(actor.parameters()))))
    assert (results[0][0].abs() > (1 - 2e-6) * MAGNITUDE).any() == (scale > 1)
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_latent_policy_reads_entries_and_writes_the_action_alone():
    torch.manual_seed(0)
    encoders = {
        "observation": StateEncoder((2,), fourier_bands=()),
        ("agent", "state"): StateEncoder((3,), fourier_bands=()),
    }
    policy = LatentPolicy(ObservationEncoder(encoders), make_actor())
    assert policy.in_keys == ["observation", ("agent", "state")] and policy.out_keys == ["action"]
    entries = {"observation": torch.randn(4, 2), "agent": {"state": torch.randn(4, 3).double()}, "other": torch.ones(4)}
    td = policy(TensorDict(entries, [4]))
    assert set(td.keys(True, True)) == {"observation", ("agent", "state"), "other", "action"}
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        flat = TensorDict({"features": torch.cat([td["observation"], td["agent", "state"].float()], -1)}, [4])
        torch.testing.assert_close(policy(td)["action"], policy.actor(flat)["action"])


def test_prior_noise_is_plain_and_unbounded():
    torch.manual_seed(0)
    td = TensorDict({"observation": torch.zeros(4000, 5)}, [4000])
    w = PriorNoise(3)(td)["action"]
    assert w.std() == pytest.approx(1.0, abs=0.03)
    assert w.abs().max() > 2.5
    assert not PriorNoise(3, scale=0.0)(td)["action"].any()


def test_the_logarithm_of_the_std_is_clipped():
    """As RLinf and dsrl_pi0 do; what is clipped gets no gradient."""
    extractor = ClippedLogStd(-20, 2)
    x = torch.tensor([[0.5, -1.0, 3.0, -30.0], [0.0, 0.0, 1.0, -1.0]], requires_grad=True)
    loc, scale = extractor(x)
    torch.testing.assert_close(loc, x[:, :2])
    torch.testing.assert_close(scale, torch.tensor([[2.0, -20.0], [1.0, -1.0]]).exp())
    scale.sum().backward()
    assert x.grad[0].tolist() == [0] * 4 and (x.grad[1, 2:] > 0).all()


def test_a_spread_narrows_what_acts_and_not_what_is_learned():
    torch.manual_seed(0)
    actor, td = make_actor(), features(4000)
    before, mode = actor.get_dist(td), actor.get_dist(td).deterministic_sample
    at = torch.rand(4000, DIM) - 0.5
    wide = torch.atanh(actor.draw(td)[0] / MAGNITUDE).std(0)
    actor.spread.fill_(0.1)
    torch.testing.assert_close(actor.get_dist(td).log_prob(at), before.log_prob(at))
    with set_exploration_type(ExplorationType.RANDOM):
        both = actor.draw(td)[0], actor(td.clone())["action"]
    for drawn in both:
        share = torch.atanh(drawn / MAGNITUDE).std(0) / wide
        torch.testing.assert_close(share, torch.full((DIM,), 0.1), rtol=0.1, atol=0)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        torch.testing.assert_close(actor(td.clone())["action"], mode)
    noise, log_prob = actor.draw(td)  # the density is that of what was drawn
    narrow = torch.distributions.Normal(actor(td)["loc"], actor(td)["scale"])
    unit = noise / MAGNITUDE
    loc = 5 * torch.tanh(narrow.loc / 5)
    expected = torch.distributions.Normal(loc, narrow.scale).log_prob(torch.atanh(unit)) - torch.log(
        MAGNITUDE * (1 - unit**2)
    )
    torch.testing.assert_close(log_prob, expected.sum(-1), rtol=1e-3, atol=1e-3)
