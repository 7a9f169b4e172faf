"""The SAC loss against an independent evaluation of SPEC §2's equations, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torchrl.objectives import SoftUpdate

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.latent_actor import make_latent_actor
from dsrl_torchrl.networks.latent_critic import make_latent_critic
from dsrl_torchrl.networks.encoders import ObservationFeatures
from dsrl_torchrl.objectives.sac import make_sac_loss

from . import macro_batch
from .macro_batch import ALPHA, DIM, GAMMA, MAGNITUDE, OBS, B, N, make_actor, make_q_noise, policy, q_noise_by_hand


def make_loss(**kwargs):
    torch.manual_seed(0)
    options = {"num_critics": N, "alpha_init": ALPHA, "gamma": GAMMA} | kwargs
    loss = make_sac_loss(make_actor(), make_q_noise(), latent_dim=DIM, action_magnitude=MAGNITUDE, **options).double()
    for key, p in loss.target_qvalue_network_params.items(True, True):
        if "mlp" in key:
            p.data.add_(0.1 * torch.randn_like(p))  # targets that differ from the critics
    return loss


def make_batch():
    batch = macro_batch.make_batch()
    return batch.set("action", torch.randn(B, DIM, dtype=torch.float64))


def keep(values, backup):
    return values.min(0)[0] if backup == "min" else values.mean(0)


@pytest.mark.parametrize("backup", ["min", "mean"])
def test_target_and_critic_loss_equal_the_equation(backup):
    loss, batch = make_loss(backup=backup), make_batch()
    following = batch["next"]
    torch.manual_seed(5)
    loss_critic, metadata = loss.qvalue_v2_loss(batch)
    w, log_prob = policy(loss.actor_network_params, following["observation"], seed=5)
    value = keep(q_noise_by_hand(loss.target_qvalue_network_params, following["observation"], w), backup)
    k = following["macro_steps"].squeeze(-1)
    alive = (~following["terminated"].squeeze(-1)).double()  # truncation bootstraps
    y = following["reward"].squeeze(-1) + GAMMA**k * alive * (value - ALPHA * log_prob)
    torch.testing.assert_close(metadata["target"], y, rtol=1e-6, atol=1e-9)
    q = q_noise_by_hand(loss.qvalue_network_params, batch["observation"], batch["action"])
    torch.testing.assert_close(loss_critic, ((q - y) ** 2).mean(1).sum(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backup", ["min", "mean"])
def test_actor_loss_equals_the_equation(backup):
    loss, batch = make_loss(backup=backup), make_batch()
    torch.manual_seed(6)
    value, metadata = loss.actor_loss(batch)
    w, log_prob = policy(loss.actor_network_params, batch["observation"], seed=6)
    q = keep(q_noise_by_hand(loss.qvalue_network_params, batch["observation"], w), backup)
    torch.testing.assert_close(value, (ALPHA * log_prob - q).mean(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(metadata["log_prob"], log_prob, rtol=1e-6, atol=1e-9)


def test_a_saturated_policy_has_a_finite_sensible_entropy():
    """Far in the corner of the noise box the density is high, but not e^100000."""
    loss, batch = make_loss(), make_batch()
    loss.actor_network_params["module", "0", "module", "2", "bias"].data[:DIM] = 100.0
    loss.actor_network_params["module", "0", "module", "2", "bias"].data[DIM:] = -100.0
    _, metadata = loss.actor_loss(batch)
    assert metadata["log_prob"].abs().max() < 30 * DIM


@pytest.mark.parametrize("parameterisation", ["log", "softplus"])
def test_temperature(parameterisation):
    loss = make_loss(alpha_parameterisation=parameterisation, target_entropy_per_dim=-0.5)
    log_prob = torch.randn(B, dtype=torch.float64)
    target = DIM * (-0.5 + math.log(MAGNITUDE))  # the box ±m holds log m more entropy per dim than [-1, 1]
    assert loss._alpha.item() == pytest.approx(ALPHA, rel=1e-5)
    factor = loss._alpha if parameterisation == "softplus" else loss.log_alpha.detach()
    value = loss.alpha_loss(log_prob).mean()
    torch.testing.assert_close(value, (-factor * (log_prob + target)).mean(), rtol=1e-6, atol=1e-6)
    value.backward()
    # Too little entropy (log π + H > 0) must raise the temperature.
    assert torch.sign(-loss.log_alpha.grad) == torch.sign((log_prob + target).mean())


def test_gradients_reach_only_what_they_should():
    loss, batch = make_loss(), make_batch()
    actor = [p for p in loss.actor_network_params.values(True, True) if p.requires_grad]
    critic = [p for p in loss.qvalue_network_params.values(True, True) if p.requires_grad]
    targets = list(loss.target_qvalue_network_params.values(True, True))
    loss.qvalue_v2_loss(batch)[0].backward()
    assert all(p.grad is not None for p in critic)
    assert all(p.grad is None for p in [*actor, *targets, loss.log_alpha])
    loss.zero_grad()
    loss.actor_loss(batch)[0].backward()
    assert all(p.grad is not None for p in actor)
    assert all(p.grad is None or not p.grad.any() for p in [*critic, *targets, loss.log_alpha])


def test_members_start_different_and_targets_equal():
    torch.manual_seed(0)
    sizes = {"features": ObservationFeatures(torch.zeros(OBS), torch.ones(OBS)), "latent_dim": DIM}
    sizes |= {"action_magnitude": 1.0, "num_cells": (16, 16)}
    loss = make_sac_loss(
        make_latent_actor(**sizes), make_latent_critic(**sizes), latent_dim=DIM, action_magnitude=1.0, num_critics=2
    )
    weights = loss.qvalue_network_params["module", "mlp", "0", "weight"]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights, loss.target_qvalue_network_params["module", "mlp", "0", "weight"])


def test_soft_update_moves_targets_by_tau():
    loss = make_loss()
    updater = SoftUpdate(loss, tau=0.25)
    key = ("module", "mlp", "0", "weight")
    before = loss.target_qvalue_network_params[key].clone()
    updater.step()
    expected = 0.75 * before + 0.25 * loss.qvalue_network_params[key].detach()
    torch.testing.assert_close(loss.target_qvalue_network_params[key], expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backup": "max"}, "backup"),
        ({"alpha_parameterisation": "exp"}, "alpha_parameterisation"),
        ({"num_critics": 0}, "num_critics"),
        ({"alpha_init": 0.0}, "alpha_init"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        make_loss(**kwargs)


@pytest.mark.parametrize("vmap", [True, False])
def test_candidates_of_any_network_are_scored_with_their_own_observation(vmap):
    loss, batch = make_loss(), make_batch()
    loss.deactivate_vmap = not vmap  # the way of a network that takes one action for each observation
    w = torch.randn(3, B, DIM, dtype=torch.float64)
    values = loss.noise_values(batch["observation"], w)
    assert values.shape == (N, 3, B)
    for i in range(3):
        by_hand = q_noise_by_hand(loss.qvalue_network_params, batch["observation"], w[i])
        torch.testing.assert_close(values[:, i], by_hand, rtol=1e-6, atol=1e-9)
