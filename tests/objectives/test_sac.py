"""The SAC loss against an independent float64 evaluation of Eq. 8 to 10."""

from __future__ import annotations

import itertools
import math
from copy import deepcopy

import pytest
import torch
from torchrl.objectives import SoftUpdate

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.critics import Critic, MLPCritic
from dsrl_torchrl.objectives.sac import LatentSACLoss, SACOptions, make_sac_loss

from . import macro_batch
from .macro_batch import (
    ALPHA,
    DIM,
    GAMMA,
    MAGNITUDE,
    B,
    N,
    keep,
    macro_target,
    make_actor,
    make_q_noise,
    move,
    policy,
    q_noise_by_hand,
    trained,
)  # fmt: skip


def make_loss(actor=None, num_critics=N, **kwargs):
    torch.manual_seed(0)
    loss = make_sac_loss(
        make_actor() if actor is None else actor,
        make_q_noise(),
        SACOptions(**{"alpha_init": ALPHA} | kwargs),
        latent_dim=DIM,
        action_magnitude=MAGNITUDE,
        gamma=GAMMA,
        num_critics=num_critics,
    ).double()
    move(loss.target_qvalue_network_params)  # targets that differ from the critics
    return loss


def make_all(**kwargs):
    torch.manual_seed(0)
    actor = make_actor()
    return actor, make_loss(actor, **kwargs), make_batch()


def make_batch():
    batch = macro_batch.make_batch()
    return batch.set("action", torch.randn(B, DIM, dtype=torch.float64))


def test_a_copy_is_of_the_same_class():
    loss = make_loss(backup="mean")
    twin = deepcopy(loss)
    assert type(twin) is LatentSACLoss
    batch = make_batch()
    for each in (loss, twin):
        torch.manual_seed(1)
        each.found = each(batch.clone())
    for key, value in loss.found.items():
        assert torch.equal(twin.found[key], value), key


@pytest.mark.parametrize("backup", ["min", "mean"])
@pytest.mark.parametrize("vmap", [False, True])
def test_target_and_critic_loss_equal_the_equation(backup, vmap, monkeypatch):
    if vmap:  # the way of any other network
        monkeypatch.setattr(MLPCritic, "ensemble", Critic.ensemble)
    actor, loss, batch = make_all(backup=backup)
    following = batch["next"]
    torch.manual_seed(5)
    loss_critic, metadata = loss.qvalue_v2_loss(batch)
    w, log_prob = policy(actor, following, seed=5)
    value = keep(q_noise_by_hand(loss.target_qvalue_network_params, following, w), backup)
    y = macro_target(following, value - ALPHA * log_prob)
    torch.testing.assert_close(metadata["target"], y, rtol=1e-6, atol=1e-9)
    q = q_noise_by_hand(loss.qvalue_network_params, batch, batch["action"])
    torch.testing.assert_close(loss_critic, ((q - y) ** 2).mean(1).sum(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(metadata["td_error"], (q - y).abs().max(0)[0], rtol=1e-6, atol=1e-9)


def test_a_target_without_the_entropy():
    """RLinf's and dsrl_pi0's; the actor's loss has it all the same."""
    actor, loss, batch = make_all(backup_entropy=False)
    following = batch["next"]
    torch.manual_seed(5)
    _, metadata = loss.qvalue_v2_loss(batch)
    w, _ = policy(actor, following, seed=5)
    y = macro_target(following, keep(q_noise_by_hand(loss.target_qvalue_network_params, following, w), "min"))
    torch.testing.assert_close(metadata["target"], y, rtol=1e-6, atol=1e-9)
    torch.manual_seed(6)
    value, _ = loss.actor_loss(batch)
    w, log_prob = policy(actor, batch, seed=6)
    q = keep(q_noise_by_hand(loss.qvalue_network_params, batch, w), "min")
    torch.testing.assert_close(value, (ALPHA * log_prob - q).mean(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2])
def test_a_target_takes_the_min_of_a_drawn_subset(size):
    """REDQ's and RLPD's: every subset of that size comes, and nothing else."""
    actor, loss, batch = make_all(target_subset=size, backup="mean")
    following = batch["next"]
    found = set()
    for seed in range(60):
        torch.manual_seed(seed)
        _, metadata = loss.qvalue_v2_loss(batch)
        w, log_prob = policy(actor, following, seed=seed)
        q = q_noise_by_hand(loss.target_qvalue_network_params, following, w)
        subsets = list(itertools.combinations(range(N), size))
        targets = [macro_target(following, q[list(s)].min(0)[0] - ALPHA * log_prob) for s in subsets]
        matches = [i for i, y in enumerate(targets) if torch.allclose(y, metadata["target"], rtol=1e-6, atol=1e-6)]
        assert matches
        found |= set(matches)
    assert len(found) == len(subsets)


def test_a_subset_larger_than_the_ensemble_is_refused():
    with pytest.raises(UserError, match=r"target_subset \(3\) must be at most num_critics \(2\)"):
        make_loss(num_critics=2, target_subset=3)


@pytest.mark.parametrize("cap", [1.7, 2.2])
def test_a_target_with_capped_entropy(cap):
    """``min(-log π, cap)`` of each decision, for noise scaled to [-1, 1]; the actor's loss has no cap."""
    actor, loss, batch = make_all(entropy_cap=cap)
    following = batch["next"]
    torch.manual_seed(5)
    _, metadata = loss.qvalue_v2_loss(batch)
    w, log_prob = policy(actor, following, seed=5)
    value = keep(q_noise_by_hand(loss.target_qvalue_network_params, following, w), "min")
    bonus = -log_prob.clone()
    for i, unit in enumerate((bonus - DIM * math.log(MAGNITUDE)).tolist()):
        if unit > cap:
            bonus[i] = cap + DIM * math.log(MAGNITUDE)
    assert 0 < (bonus != -log_prob).sum() < B
    torch.testing.assert_close(metadata["target"], macro_target(following, value + ALPHA * bonus), rtol=1e-6, atol=1e-9)
    free = make_loss(actor)
    torch.manual_seed(6)
    capped_loss = loss.actor_loss(batch)[0]
    torch.manual_seed(6)
    torch.testing.assert_close(capped_loss, free.actor_loss(batch)[0])


def test_a_target_entropy_in_all_is_that_of_every_dimension_summed():
    per_dim = make_loss(target_entropy_per_dim=-0.5)
    total = make_loss(target_entropy_per_dim=7.0, target_entropy=-0.5 * DIM)
    assert total.target_entropy == per_dim.target_entropy


@pytest.mark.parametrize("backup", ["min", "mean"])
def test_actor_loss_equals_the_equation(backup):
    actor, loss, batch = make_all(backup=backup)
    torch.manual_seed(6)
    value, metadata = loss.actor_loss(batch)
    w, log_prob = policy(actor, batch, seed=6)
    q = keep(q_noise_by_hand(loss.qvalue_network_params, batch, w), backup)
    torch.testing.assert_close(value, (ALPHA * log_prob - q).mean(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(metadata["log_prob"], log_prob, rtol=1e-6, atol=1e-9)


def test_the_whole_loss_is_its_parts():
    """As a TorchRL user calls it: everything under the names of ``out_keys``, read from ``in_keys`` alone."""
    _, loss, batch = make_all()
    results = []
    for td in (batch, batch.select(*loss.in_keys, strict=False)):
        torch.manual_seed(5)
        results.append(loss(td))
    for name in ("loss_actor", "loss_qvalue", "loss_alpha"):
        assert name in loss.out_keys
        torch.testing.assert_close(results[1][name], results[0][name])
    torch.manual_seed(5)
    torch.testing.assert_close(results[0]["loss_qvalue"], loss.qvalue_v2_loss(batch)[0])


def test_a_batch_without_its_step_counts_is_refused():
    _, loss, batch = make_all()
    assert ("next", "chunk_steps") in loss.in_keys
    with pytest.raises(UserError, match="no such entry"):
        loss.qvalue_v2_loss(batch.exclude(("next", "chunk_steps")))


def test_a_saturated_policy_has_a_finite_sensible_entropy():
    """Far in the corner of the noise box the density is high, but not e^100000."""
    actor, loss, batch = make_all()
    head = dict(actor.named_parameters())["module.0.module.1.bias"]
    head.data[:DIM], head.data[DIM:] = 100.0, -100.0
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


@pytest.mark.parametrize("parameterisation", ["log", "softplus"])
def test_gradients_reach_only_what_they_should(parameterisation):
    actor, loss, batch = make_all(alpha_parameterisation=parameterisation)
    critic = trained(loss.qvalue_network_params)
    targets = list(loss.target_qvalue_network_params.values(True, True))
    loss.qvalue_v2_loss(batch)[0].backward()
    assert all(p.grad is not None for p in critic)
    assert all(p.grad is None for p in [*actor.parameters(), *targets, loss.log_alpha])
    loss.zero_grad()
    loss.actor_loss(batch)[0].backward()
    assert all(p.grad is not None for p in actor.parameters())
    assert all(p.grad is None or not p.grad.any() for p in [*critic, *targets, loss.log_alpha])


def test_members_start_different_and_targets_equal():
    torch.manual_seed(0)
    sizes = {"latent_dim": DIM, "action_magnitude": 1.0, "gamma": GAMMA, "num_critics": 2}
    loss = make_sac_loss(make_actor(), make_q_noise(), SACOptions(), **sizes)
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


def test_state_dict_restores_the_loss():
    _, loss, batch = make_all()
    with torch.no_grad():
        loss.log_alpha.add_(1.0)
    other = make_loss(make_actor())
    other.load_state_dict(loss.state_dict())
    results = []
    for module in (loss, other):
        torch.manual_seed(5)
        results.append(torch.stack([module.qvalue_v2_loss(batch)[0], module.actor_loss(batch)[0]]))
    torch.testing.assert_close(*results)


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


@pytest.mark.parametrize("argument", ["backup", "alpha_parameterisation"])
def test_bad_arguments_of_the_loss_itself(argument):
    with pytest.raises(UserError, match=argument):
        LatentSACLoss(make_actor(), make_q_noise(), **{argument: "exp"})
