"""``Q^A``'s loss against an independent float64 evaluation of Eq. 12, and TorchRL's properties of a loss."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate, ValueEstimators

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.critics import Critic, MLPCritic
from dsrl_torchrl.objectives.q_action import QActionLoss

from .macro_batch import (
    ALPHA,
    GAMMA,
    B,
    Decoder,
    N,
    draws_of,
    keep,
    macro_target,
    make_actor,
    make_batch,
    make_q_action,
    move,
    policy,
    q_action_by_hand,
    trained,
)  # fmt: skip


def make_loss(actor=None, **kwargs):
    torch.manual_seed(0)
    options = {"num_critics": N, "temperature": ALPHA, "backup": "min", "decode": Decoder()} | kwargs
    actor = make_actor() if actor is None else actor
    loss = QActionLoss(make_q_action(), draws_of(actor), options.pop("decode"), **options).double()
    move(loss.target_q_action_params)  # targets that differ from the critics
    return loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)


def make_all(**kwargs):
    actor = make_actor()
    return actor, make_loss(actor, **kwargs), make_batch()


def by_hand(actor, loss, batch, seed, backup="min"):
    following = batch["next"]
    w, log_prob = policy(actor, following, seed)
    chunk = Decoder()(following, w).detach()
    value = keep(q_action_by_hand(loss.target_q_action_params, following, chunk), backup)
    return macro_target(following, value - ALPHA * log_prob)


@pytest.mark.parametrize("backup", ["min", "mean"])
@pytest.mark.parametrize("vmap", [False, True])
def test_target_and_loss_equal_the_equation(backup, vmap, monkeypatch):
    if vmap:  # the way of any other network
        monkeypatch.setattr(MLPCritic, "ensemble", Critic.ensemble)
    actor, loss, batch = make_all(backup=backup)
    y = by_hand(actor, loss, batch, 5, backup)
    torch.manual_seed(5)
    out = loss(batch)
    torch.testing.assert_close(out["value_target"], y, rtol=1e-6, atol=1e-9)
    q = q_action_by_hand(loss.q_action_params, batch, batch["next", "action_chunk"])
    torch.testing.assert_close(out["q_action"], q, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out["loss_q_action"], ((q - y) ** 2).mean(1).sum(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out["td_error"], (q - y).abs().max(0)[0], rtol=1e-6, atol=1e-9)


def test_the_temperature_may_move_between_calls():
    alpha = torch.tensor(0.0, dtype=torch.float64)
    actor, loss, batch = make_all(temperature=lambda: alpha)
    torch.manual_seed(5)
    without = loss(batch)["value_target"]
    alpha.fill_(ALPHA)
    torch.manual_seed(5)
    torch.testing.assert_close(loss(batch)["value_target"], by_hand(actor, loss, batch, 5), rtol=1e-6, atol=1e-9)
    assert not torch.allclose(without, loss(batch)["value_target"])


def test_chunks_drawn_before_give_the_same_target_without_a_decode():
    calls = []

    def decode(observations, noise):
        calls.append(noise.shape[:-1])
        return Decoder()(observations, noise)

    actor, loss, batch = make_all(decode=decode)
    torch.manual_seed(5)
    drawn = loss.draw_next_chunks(batch.copy())
    assert calls == [batch.shape]
    torch.testing.assert_close(loss(drawn)["value_target"], by_hand(actor, loss, batch, 5), rtol=1e-6, atol=1e-9)
    assert len(calls) == 1
    several = loss.draw_next_chunks(torch.stack([batch, batch]))  # the batches of two updates
    assert calls[1:] == [(2, B)]
    for one in several.unbind(0):
        loss(one)
    assert len(calls) == 2
    assert not drawn["next", "chunk"].requires_grad and not drawn["next", "noise_log_prob"].requires_grad


def test_a_batch_is_left_as_it_was():
    _, loss, batch = make_all()
    before = batch.clone()
    loss(batch)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


def test_gradients_reach_the_critics_alone():
    decoder = Decoder()
    actor, loss, batch = make_all(decode=decoder)
    loss(batch)["loss_q_action"].backward()
    assert all(p.grad is not None and p.grad.any() for p in trained(loss.q_action_params))
    others = [*actor.parameters(), *loss.target_q_action_params.values(True, True), *decoder.parameters()]
    assert all(p.grad is None for p in others)


def test_its_parameters_are_the_critics_alone():
    """An optimiser on ``loss.parameters()`` must move neither the latent policy nor the frozen one."""
    decoder = Decoder()
    actor, loss, _ = make_all(decode=decoder)
    mine = {p.data_ptr() for p in loss.parameters()}
    assert mine == {p.data_ptr() for p in trained(loss.q_action_params)}
    assert not mine & {p.data_ptr() for p in [*actor.parameters(), *decoder.parameters()]}
    assert not any("decode" in name or "draw" in name for name in loss.state_dict())


def test_features_of_the_next_observation_train_nothing():
    """A trained encoder learns from ``Q(s, a)`` alone: the target is a constant."""
    _, loss, batch = make_all()
    here, there = (batch[key].requires_grad_() for key in ("features", ("next", "features")))
    loss(batch)["loss_q_action"].backward()
    assert here.grad.any() and there.grad is None


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_reduction(reduction):
    actor, loss, batch = make_all(reduction=reduction)
    y = by_hand(actor, loss, batch, 5)
    torch.manual_seed(5)
    value = loss(batch)["loss_q_action"]
    q = q_action_by_hand(loss.q_action_params, batch, batch["next", "action_chunk"])
    each = ((q - y) ** 2).sum(0)
    expected = {"none": each, "mean": each.mean(), "sum": each.sum()}[reduction]
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


def test_renamed_keys():
    _, loss, batch = make_all()
    torch.manual_seed(5)
    expected = loss(batch)["loss_q_action"]
    loss.set_keys(
        action_chunk=("next", "head"), steps_to_next_obs=("next", "k"), reward="r", done="d", terminated="t", value="v"
    )
    names = {"head": "action_chunk", "k": "chunk_steps", "r": "reward", "d": "done", "t": "terminated"}
    for new, old in names.items():
        batch["next"].rename_key_(old, new)
    torch.manual_seed(5)
    torch.testing.assert_close(loss(batch)["loss_q_action"], expected)
    assert {("next", "head"), ("next", "k"), ("next", "r")} <= set(loss.in_keys)
    with pytest.raises(ValueError, match="not an accepted"):
        loss.set_keys(chunk="x")


def test_in_keys_are_all_that_it_reads():
    _, loss, batch = make_all()
    torch.manual_seed(5)
    expected = loss(batch)["loss_q_action"]
    torch.manual_seed(5)
    filtered = batch.select(*loss.in_keys)
    torch.testing.assert_close(loss(filtered)["loss_q_action"], expected)
    assert set(loss(batch).keys()) == set(loss.out_keys)
    for key in set(loss.in_keys) - {("next", "done"), ("next", "terminated")}:  # of which TorchRL needs one
        with pytest.raises((AttributeError, TypeError, KeyError, UserError)):
            loss(filtered.exclude(key))


def test_a_batch_without_its_step_counts_is_refused():
    """TorchRL's TD(0) would take k = 1, silently."""
    _, loss, batch = make_all()
    with pytest.raises(UserError, match=r"needs \('next', 'chunk_steps'\).*no such entry"):
        loss(batch.exclude(("next", "chunk_steps")))


def test_state_dict_restores_the_loss():
    actor, loss, batch = make_all()
    other = make_loss(actor)
    for p in other.parameters():
        p.data.normal_()
    other.load_state_dict(loss.state_dict())
    results = []
    for module in (loss, other):
        torch.manual_seed(5)
        results.append(module(batch)["loss_q_action"])
    torch.testing.assert_close(*results)


def test_soft_update_moves_the_targets_by_tau():
    loss = make_loss()
    key = ("module", "mlp", "0", "weight")
    updater = SoftUpdate(loss, tau=0.25)
    loss.target_q_action_params[key].data.add_(1.0)
    before = loss.target_q_action_params[key].clone()
    updater.step()
    expected = 0.75 * before + 0.25 * loss.q_action_params[key].detach()
    torch.testing.assert_close(loss.target_q_action_params[key], expected)


def test_functional_parameters_are_those_that_it_uses():
    """One member's parameters in all places: every member says the same."""
    _, loss, batch = make_all()
    with torch.no_grad():
        for p in loss.q_action_params.values(True, True):
            p.copy_(p[:1].expand_as(p).clone())
    q = loss(batch)["q_action"]
    torch.testing.assert_close(q, q[:1].expand_as(q))


def test_a_batch_of_sequences_gives_the_same_as_a_flat_one():
    _, loss, batch = make_all(temperature=0.0)
    batch = torch.cat([batch, batch])
    torch.manual_seed(5)
    flat_loss = loss(batch)["loss_q_action"]
    torch.manual_seed(5)
    torch.testing.assert_close(loss(TensorDict(batch.reshape(2, B)))["loss_q_action"], flat_loss)


def test_other_targets_are_refused():
    with pytest.raises(NotImplementedError, match="TD\\(0\\)"):
        make_loss().make_value_estimator(ValueEstimators.TDLambda, gamma=GAMMA)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"backup": "max"}, "backup"), ({"num_critics": 0}, "num_critics"), ({"reduction": "max"}, "reduction")],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        make_loss(**kwargs)


def test_it_can_be_called_without_a_tensordict():
    _, loss, batch = make_all()
    batch = batch.select(*loss.in_keys)
    torch.manual_seed(5)
    expected = loss(batch)["loss_q_action"]
    arguments = {"_".join(k) if isinstance(k, tuple) else k: v for k, v in batch.items(True, True)}
    torch.manual_seed(5)
    value = loss(**arguments)[0]
    torch.testing.assert_close(value, expected)


def test_the_weights_of_a_prioritised_replay_count():
    _, loss, batch = make_all(reduction=None)
    weights = torch.rand(B, dtype=torch.float64)
    loss.set_keys(priority_weight="w")
    torch.manual_seed(5)
    out = loss(batch.set("w", weights))
    squared = (out["q_action"] - out["value_target"]).square().sum(0)
    torch.testing.assert_close(out["loss_q_action"].detach(), (squared * weights).sum() / weights.sum())


def test_one_transition_without_a_batch():
    _, loss, batch = make_all()
    torch.manual_seed(5)
    expected = loss(batch[:1])["loss_q_action"]
    torch.manual_seed(5)
    torch.testing.assert_close(loss(batch[0])["loss_q_action"], expected)
