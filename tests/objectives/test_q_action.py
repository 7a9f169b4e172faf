"""``Q^A``'s loss against an independent float64 evaluation of SPEC §3, and TorchRL's properties of a loss."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate, ValueEstimators

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.objectives.q_action import ActionValueLoss

from .macro_batch import (
    ALPHA,
    GAMMA,
    B,
    Decoder,
    N,
    make_actor,
    make_batch,
    make_q_action,
    policy,
    q_action_by_hand,
)  # fmt: skip


def make_loss(**kwargs):
    torch.manual_seed(0)
    options = {"num_critics": N, "temperature": ALPHA} | kwargs
    loss = ActionValueLoss(make_actor(), make_q_action(), options.pop("decode", Decoder()), **options).double()
    for key, p in loss.target_action_value_network_params.items(True, True):
        if "mlp" in key:
            p.data.add_(0.1 * torch.randn_like(p))  # targets that differ from the critics
    return loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)


def keep(values, backup):
    return values.min(0)[0] if backup == "min" else values.mean(0)


def by_hand(loss, batch, seed, backup="min"):
    following = batch["next"]
    w, log_prob = policy(loss.actor_network_params, following["observation"], seed)
    chunk = Decoder()(following["observation"], w).detach()
    value = keep(q_action_by_hand(loss.target_action_value_network_params, following["observation"], chunk), backup)
    alive = (~following["terminated"].squeeze(-1)).double()  # truncation bootstraps
    k = following["macro_steps"].squeeze(-1)
    return following["reward"].squeeze(-1) + GAMMA**k * alive * (value - ALPHA * log_prob)


@pytest.mark.parametrize("backup", ["min", "mean"])
@pytest.mark.parametrize("vmap_off", [False, True])
def test_target_and_loss_equal_the_equation(backup, vmap_off):
    loss, batch = make_loss(backup=backup, deactivate_vmap=vmap_off), make_batch()
    y = by_hand(loss, batch, 5, backup)
    torch.manual_seed(5)
    out = loss(batch)
    torch.testing.assert_close(out["value_target"], y, rtol=1e-6, atol=1e-9)
    q = q_action_by_hand(loss.action_value_network_params, batch["observation"], batch["next", "executed_chunk"])
    torch.testing.assert_close(out["q_action"], q, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out["loss_action_value"], ((q - y) ** 2).mean(1).sum(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out["td_error"], (q - y).abs().max(0)[0], rtol=1e-6, atol=1e-9)


def test_the_temperature_may_move_between_calls():
    alpha = torch.tensor(0.0, dtype=torch.float64)
    loss, batch = make_loss(temperature=lambda: alpha), make_batch()
    torch.manual_seed(5)
    without = loss(batch)["value_target"]
    alpha.fill_(ALPHA)
    torch.manual_seed(5)
    torch.testing.assert_close(loss(batch)["value_target"], by_hand(loss, batch, 5), rtol=1e-6, atol=1e-9)
    assert not torch.allclose(without, loss(batch)["value_target"])


def test_chunks_drawn_before_give_the_same_target_without_a_decode():
    calls = []

    def decode(observation, noise):
        calls.append(noise.shape[:-1])
        return Decoder()(observation, noise)

    loss, batch = make_loss(decode=decode), make_batch()
    torch.manual_seed(5)
    drawn = loss.draw_next_chunks(batch.copy())
    assert calls == [batch.shape]
    torch.testing.assert_close(loss(drawn)["value_target"], by_hand(loss, batch, 5), rtol=1e-6, atol=1e-9)
    assert len(calls) == 1
    several = loss.draw_next_chunks(torch.stack([batch, batch]))  # the batches of two updates
    assert calls[1:] == [(2, B)]
    for one in several.unbind(0):
        loss(one)
    assert len(calls) == 2
    assert not drawn["next", "chunk"].requires_grad and not drawn["next", "noise_log_prob"].requires_grad


def test_gradients_reach_the_critics_alone():
    decoder = Decoder()
    loss, batch = make_loss(decode=decoder), make_batch()
    loss(batch)["loss_action_value"].backward()
    assert all(p.grad is not None for p in loss.action_value_network_params.values(True, True) if p.requires_grad)
    others = [
        *loss.actor_network_params.values(True, True),
        *loss.target_action_value_network_params.values(True, True),
    ]
    assert all(p.grad is None for p in [*others, *decoder.parameters()])
    assert not any("decode" in name for name, _ in loss.named_parameters())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_reduction(reduction):
    loss, batch = make_loss(reduction=reduction), make_batch()
    y = by_hand(loss, batch, 5)
    torch.manual_seed(5)
    value = loss(batch)["loss_action_value"]
    q = q_action_by_hand(loss.action_value_network_params, batch["observation"], batch["next", "executed_chunk"])
    each = ((q - y) ** 2).sum(0)
    expected = {"none": each, "mean": each.mean(), "sum": each.sum()}[reduction]
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


def test_renamed_keys():
    loss, batch = make_loss(), make_batch()
    torch.manual_seed(5)
    expected = loss(batch)["loss_action_value"]
    loss.set_keys(executed_chunk=("next", "head"), macro_steps=("next", "k"), reward="r", done="d", terminated="t")
    following = batch["next"]
    for new, old in {
        "head": "executed_chunk",
        "k": "macro_steps",
        "r": "reward",
        "d": "done",
        "t": "terminated",
    }.items():
        following.rename_key_(old, new)
    torch.manual_seed(5)
    torch.testing.assert_close(loss(batch)["loss_action_value"], expected)
    assert ("next", "k") in loss.in_keys
    assert ("next", "r") in loss.in_keys
    with pytest.raises(ValueError, match="not an accepted"):
        loss.set_keys(chunk="x")


def test_in_keys_are_all_that_it_reads():
    loss, batch = make_loss(), make_batch()
    torch.manual_seed(5)
    expected = loss(batch)["loss_action_value"]
    torch.manual_seed(5)
    torch.testing.assert_close(loss(batch.select(*loss.in_keys))["loss_action_value"], expected)
    assert set(loss(batch).keys()) == set(loss.out_keys)


def test_state_dict_restores_the_loss():
    loss, batch = make_loss(), make_batch()
    torch.manual_seed(9)
    other = make_loss()
    for p in other.parameters():
        p.data.normal_()
    other.load_state_dict(loss.state_dict())
    results = []
    for module in (loss, other):
        torch.manual_seed(5)
        results.append(module(batch)["loss_action_value"])
    torch.testing.assert_close(*results)


def test_soft_update_moves_the_targets_by_tau():
    loss = make_loss()
    key = ("module", "mlp", "0", "weight")
    updater = SoftUpdate(loss, tau=0.25)
    loss.target_action_value_network_params[key].data.add_(1.0)
    before = loss.target_action_value_network_params[key].clone()
    updater.step()
    expected = 0.75 * before + 0.25 * loss.action_value_network_params[key].detach()
    torch.testing.assert_close(loss.target_action_value_network_params[key], expected)


def test_the_actor_is_shared_with_its_own_loss():
    actor = make_actor()
    loss = ActionValueLoss(actor, make_q_action(), Decoder())
    mine = {p.data_ptr() for p in loss.actor_network_params.values(True, True)}
    assert {p.data_ptr() for p in actor.parameters()} <= mine


def test_a_batch_of_sequences_gives_the_same_as_a_flat_one():
    loss, batch = make_loss(temperature=0.0), make_batch()
    batch = torch.cat([batch, batch])
    torch.manual_seed(5)
    flat_loss = loss(batch)["loss_action_value"]
    torch.manual_seed(5)
    torch.testing.assert_close(loss(TensorDict(batch.reshape(2, B)))["loss_action_value"], flat_loss)


@pytest.mark.parametrize(("kwargs", "message"), [({"backup": "max"}, "backup"), ({"num_critics": 0}, "num_critics")])
def test_bad_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        make_loss(**kwargs)


def test_it_can_be_called_without_a_tensordict():
    loss, batch = make_loss(), make_batch().select(*make_loss().in_keys)
    torch.manual_seed(5)
    expected = loss(batch)["loss_action_value"]
    arguments = {"_".join(k) if isinstance(k, tuple) else k: v for k, v in batch.items(True, True)}
    torch.manual_seed(5)
    value = loss(**arguments)[0]
    torch.testing.assert_close(value, expected)
