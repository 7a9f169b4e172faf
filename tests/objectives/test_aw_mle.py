"""AW-MLE against an independent float64 evaluation of Eq. 14 and 15, and closed forms of its weights."""

from __future__ import annotations

import math

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.objectives.aw_mle import AdvantageWeightedMLELoss, truncated_prior

from .macro_batch import DIM, MAGNITUDE, B, gaussian, log_density, make_actor, make_batch

M, BETA, TAU = 6, 0.7, 1.3


def quadratic(observations, noise):
    """Two critics that differ: ``-|w - c|²`` and ``-|w + c|²``, and depend on the state."""
    centre = observations["features"][..., :1]
    return torch.stack([-(noise - centre).square().sum(-1), -(noise + centre).square().sum(-1)])


def make_loss(noise_values=quadratic, actor=None, **kwargs):
    torch.manual_seed(0)
    options = {"m_candidates": M, "beta_latent": BETA, "tau_baseline": TAU, "backup": "min"} | kwargs
    actor = make_actor() if actor is None else actor
    return AdvantageWeightedMLELoss(actor, noise_values, latent_dim=DIM, action_magnitude=MAGNITUDE, **options).double()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("backup", ["min", "mean"])
def test_loss_equals_the_equation(reduction, backup):
    actor, batch = make_actor(), make_batch()
    loss = make_loss(actor=actor, reduction=reduction, backup=backup)
    torch.manual_seed(5)
    w = truncated_prior(M, B, DIM, bound=MAGNITUDE, like=batch["features"])
    torch.manual_seed(5)
    out = loss(batch)
    both = quadratic(batch, w)
    q = both.min(0)[0] if backup == "min" else both.mean(0)
    loc, scale = gaussian(actor, batch)
    log_pi = log_density(loc, scale, torch.atanh(w / MAGNITUDE))
    value = TAU * torch.log(torch.exp(q / TAU).mean(0))
    omega = torch.exp(BETA * (q - value)) / M
    each = -(omega * log_pi).sum(0)
    expected = {"none": each, "mean": each.mean(), "sum": each.sum()}[reduction]
    torch.testing.assert_close(out["loss_aw_mle"], expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out["advantage"], (omega * q).sum(0) / omega.sum(0) - q.mean(0), rtol=1e-6, atol=1e-9)
    effective = omega.sum(0) ** 2 / (omega**2).sum(0)
    torch.testing.assert_close(out["effective_candidates"], effective, rtol=1e-6, atol=1e-9)


def test_weights_are_a_softmax_when_the_temperatures_agree():
    q = torch.randn(M, B, dtype=torch.float64)
    torch.testing.assert_close(make_loss(beta_latent=0.5, tau_baseline=2.0).weights(q), torch.softmax(q / 2.0, 0))


def test_weights_are_bounded_and_blind_to_the_level_of_q():
    loss, q = make_loss(), 100 * torch.randn(M, B, dtype=torch.float64)
    weights = loss.weights(q)
    assert weights.isfinite().all()
    assert weights.max() <= M ** (BETA * TAU) / M * (1 + 1e-9)
    torch.testing.assert_close(loss.weights(q - 1000), weights)
    torch.testing.assert_close(loss.weights(torch.zeros(M, B)), torch.full((M, B), 1 / M))


def test_flat_values_give_the_maximum_likelihood_of_the_prior():
    loss, batch = make_loss(lambda s, w: torch.zeros(2, *w.shape[:-1], dtype=w.dtype)), make_batch()
    torch.manual_seed(5)
    out = loss(batch)
    torch.testing.assert_close(out["effective_candidates"], torch.full((B,), float(M), dtype=torch.float64))
    torch.testing.assert_close(out["advantage"], torch.zeros(B, dtype=torch.float64))


def test_the_policy_moves_to_the_better_candidates():
    """``Q = -4 |w - c|²`` and β = τ = 1: the tilted prior ``N(0, I) e^Q`` has mean 8 c / 9, well inside the box."""
    centre = torch.tensor([0.6, -0.4, 0.0, 0.3, -0.6, 0.1], dtype=torch.float64)
    values = lambda s, w: (-4 * (w - centre).square().sum(-1)).expand(2, *w.shape[:-1])  # noqa: E731
    actor = make_actor()
    loss = make_loss(values, actor, m_candidates=2048, beta_latent=1.0, tau_baseline=1.0)
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.01)
    batch = make_batch()
    for _ in range(250):
        value = loss(batch)["loss_aw_mle"]
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    w = actor.get_dist(batch).sample((2000,)).mean((0, 1))
    torch.testing.assert_close(w, 8 / 9 * centre, rtol=0, atol=0.08)


def test_gradients_reach_the_actor_alone():
    critic = torch.nn.Linear(DIM, 1).double()
    actor = make_actor()
    loss = make_loss(lambda s, w: critic(w).squeeze(-1).expand(2, *w.shape[:-1]), actor)
    loss(make_batch())["loss_aw_mle"].backward()
    assert all(p.grad is not None and p.grad.any() for p in actor.parameters())
    assert all(p.grad is None for p in critic.parameters())
    assert {p.data_ptr() for p in actor.parameters()} == {p.data_ptr() for p in loss.parameters()}


def test_features_may_train_an_encoder_only_where_the_caller_asks_for_it():
    loss, batch = make_loss(), make_batch()
    batch["features"].requires_grad_()
    loss(batch)["loss_aw_mle"].backward()
    assert batch["features"].grad.any()  # an agent hands over detached ones


def test_candidates_are_the_prior_inside_the_box():
    torch.manual_seed(0)
    w = truncated_prior(200_000, bound=MAGNITUDE, like=torch.zeros((), dtype=torch.float64))
    assert w.abs().max() < MAGNITUDE
    density = math.exp(-(MAGNITUDE**2) / 2) / math.sqrt(2 * math.pi)
    variance = 1 - 2 * MAGNITUDE * density / math.erf(MAGNITUDE / math.sqrt(2))  # of a truncated normal
    assert w.var().item() == pytest.approx(variance, abs=0.01)
    assert w.mean().item() == pytest.approx(0, abs=0.01)


def test_in_keys_and_state_dict():
    loss, batch = make_loss(), make_batch()
    torch.manual_seed(5)
    expected = loss(batch)["loss_aw_mle"]
    other = make_loss()
    for p in other.parameters():
        p.data.normal_()
    other.load_state_dict(loss.state_dict())
    torch.manual_seed(5)
    out = other(batch.select(*other.in_keys))
    torch.testing.assert_close(out["loss_aw_mle"], expected)
    assert set(out.keys()) == set(other.out_keys)
    assert other.in_keys == ["features"]
    with pytest.raises(ValueError, match="not an accepted"):
        other.set_keys(reward="r")


def test_it_can_be_called_without_a_tensordict():
    """And for one state, without a batch."""
    loss, batch = make_loss(), make_batch()
    for rows in (batch, batch[0]):
        torch.manual_seed(5)
        expected = loss(rows)["loss_aw_mle"]
        torch.manual_seed(5)
        torch.testing.assert_close(loss(features=rows["features"])[0], expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reduction": "max"}, "reduction"),
        ({"m_candidates": 1}, "m_candidates"),
        ({"beta_latent": 0.0}, "beta_latent"),
        ({"tau_baseline": -1.0}, "tau_baseline"),
        ({"backup": "max"}, "backup"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        make_loss(**kwargs)
