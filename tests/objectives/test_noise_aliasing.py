"""Distillation against an independent float64 evaluation of Eq. 13, and where its gradient stops."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.critics import Critic, MLPCritic
from dsrl_torchrl.objectives.noise_aliasing import NoiseAliasingLoss
from dsrl_torchrl.objectives.q_action import QActionLoss
from dsrl_torchrl.objectives.sac import SACOptions, make_sac_loss

from .macro_batch import (
    ACTION,
    DIM,
    FEATURES,
    GAMMA,
    H_A,
    MAGNITUDE,
    B,
    Decoder,
    N,
    draws_of,
    make_actor,
    make_batch,
    make_q_action,
    make_q_noise,
    q_action_by_hand,
    q_noise_by_hand,
    trained,
)  # fmt: skip


def make_losses(decoder=None, **kwargs):
    torch.manual_seed(0)
    decoder = Decoder() if decoder is None else decoder
    td = QActionLoss(
        make_q_action(), draws_of(make_actor()), decoder, num_critics=N, backup="min", temperature=0.0
    ).double()  # fmt: skip
    options = {"latent_dim": DIM, "num_critics": N} | kwargs
    return td, NoiseAliasingLoss(make_q_noise(), td.values, decoder, **options).double()


def by_hand(td, loss, batch, seed):
    """``(Q^W_i(s, w), Q^A_i(s, decode(s, w)))``, ``[N, B]`` each."""
    torch.manual_seed(seed)
    w = torch.randn(B, DIM, dtype=torch.float64)
    chunk = Decoder()(batch, w).detach()
    return q_noise_by_hand(loss.q_noise_params, batch, w), q_action_by_hand(td.q_action_params, batch, chunk)


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_loss_equals_the_equation_member_by_member(reduction, vmap, monkeypatch):
    if vmap:  # the way of any other network
        monkeypatch.setattr(MLPCritic, "ensemble", Critic.ensemble)
    td, loss = make_losses(reduction=reduction)
    batch = make_batch()
    q, target = by_hand(td, loss, batch, 5)
    torch.manual_seed(5)
    out = loss(batch)
    each = ((q - target) ** 2).sum(0)  # each member has its own target: no min, no mean over the teachers
    expected = {"none": each, "mean": each.mean(), "sum": each.sum()}[reduction]
    torch.testing.assert_close(out["loss_noise_aliasing"], expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out["q_noise"], q, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out["q_action"], target, rtol=1e-6, atol=1e-9)


def test_pairs_decoded_before_are_taken_as_they_are():
    """A decoded pair of the batch is where it distils: nothing is drawn or decoded."""
    td, loss = make_losses()
    batch, w = make_batch(), torch.randn(B, DIM, dtype=torch.float64)
    chunk = Decoder()(batch, w).detach()
    loss.refer(decode=None)
    out = loss(batch.copy().set("pair_noise", w).set("pair_chunk", chunk))
    torch.testing.assert_close(out["q_noise"], q_noise_by_hand(loss.q_noise_params, batch, w), rtol=1e-6, atol=1e-9)
    teacher = q_action_by_hand(td.q_action_params, batch, chunk)
    torch.testing.assert_close(out["q_action"], teacher, rtol=1e-6, atol=1e-9)


def test_gradients_reach_the_noise_critics_alone():
    decoder = Decoder()
    td, loss = make_losses(decoder)
    loss(make_batch())["loss_noise_aliasing"].backward()
    assert all(p.grad is not None and p.grad.any() for p in trained(loss.q_noise_params))
    assert all(p.grad is None for p in [*td.parameters(), *decoder.parameters()])


def test_its_parameters_are_the_noise_critics_alone():
    """An optimiser on ``loss.parameters()`` must move neither the teacher nor the frozen policy."""
    td, loss = make_losses()
    assert {p.data_ptr() for p in loss.parameters()} == {p.data_ptr() for p in trained(loss.q_noise_params)}
    assert not {p.data_ptr() for p in td.parameters()} & {p.data_ptr() for p in loss.parameters()}


def test_only_what_critics_and_decoder_read_is_read():
    _, loss = make_losses()
    batch = make_batch()
    assert set(loss.in_keys) == {"features", "observation"}
    values = []
    for td_in in (batch, batch.select(*loss.in_keys)):
        torch.manual_seed(5)
        out = loss(td_in)
        values.append(out["loss_noise_aliasing"])
        assert set(out.keys()) == set(loss.out_keys)
    torch.testing.assert_close(values[0], values[1])
    torch.manual_seed(5)  # and without a tensordict
    value = loss(**{key: batch[key] for key in loss.in_keys})[0]
    torch.testing.assert_close(value, values[0])


def test_it_can_be_called_without_a_tensordict():
    """By one vector, whose own axis is none of the batch; and for one state."""
    _, loss = make_losses(decode_keys=())
    loss.refer(decode=lambda observations, noise: noise.reshape(*noise.shape[:-1], H_A, ACTION))
    assert loss.in_keys == ["features"]
    batch = make_batch().select("features")
    for rows in (batch, batch[0]):
        torch.manual_seed(5)
        expected = loss(rows)["loss_noise_aliasing"]
        torch.manual_seed(5)
        torch.testing.assert_close(loss(features=rows["features"])[0], expected)


def test_renamed_keys():
    _, loss = make_losses()
    batch, w = make_batch(), torch.randn(B, DIM, dtype=torch.float64)
    chunk = Decoder()(batch, w).detach()
    expected = loss(batch.copy().set("pair_noise", w).set("pair_chunk", chunk))["q_noise"]
    loss.set_keys(pair_noise=("drawn", "w"), pair_chunk=("drawn", "a"))
    out = loss(batch.copy().set(("drawn", "w"), w).set(("drawn", "a"), chunk))
    torch.testing.assert_close(out["q_noise"], expected)
    with pytest.raises(ValueError, match="not an accepted"):
        loss.set_keys(observation="s")


def test_state_dict_restores_the_loss():
    _, loss = make_losses()
    _, other = make_losses()
    for p in other.parameters():
        p.data.normal_()
    other.load_state_dict(loss.state_dict())
    for key, value in loss.q_noise_params.items(True, True):
        torch.testing.assert_close(other.q_noise_params[key], value)


def test_sac_and_distillation_train_one_noise_critic():
    """In DSRL-NA the actor and temperature terms are SACLoss's, on the ``Q^W`` that is distilled."""
    torch.manual_seed(0)
    actor, decoder = make_actor(), Decoder()
    sac = make_sac_loss(
        actor, make_q_noise(), SACOptions(), latent_dim=DIM, action_magnitude=MAGNITUDE, gamma=GAMMA, num_critics=N,
        delay_qvalue=False,
    ).double()  # fmt: skip
    td = QActionLoss(
        make_q_action(), draws_of(actor), decoder, num_critics=N, backup="min", temperature=lambda: sac._alpha
    ).double()  # fmt: skip
    loss = NoiseAliasingLoss(
        sac.qvalue_network, td.values, decoder, latent_dim=DIM, num_critics=N, q_noise_params=sac.qvalue_network_params
    )
    batch = make_batch()
    critics = trained(sac.qvalue_network_params)
    loss(batch)["loss_noise_aliasing"].backward()
    assert all(p.grad is not None and p.grad.any() for p in critics)
    assert all(p.grad is None for p in [*actor.parameters(), *td.parameters()])
    with torch.no_grad():
        for p in critics:
            p.add_(0.1 * torch.randn_like(p))
    w = torch.randn(B, DIM, dtype=torch.float64)
    torch.testing.assert_close(sac.values(batch, w), loss.values(batch, w))
    sac.zero_grad()
    sac.actor_loss(batch)[0].backward()
    assert all(p.grad is not None for p in actor.parameters())
    assert all(p.grad is None or not p.grad.any() for p in [*critics, *decoder.parameters()])
    assert all(p.grad is None for p in td.q_action_params.values(True, True))


def test_distillation_converges_to_the_teacher():
    """With a teacher that a linear student can express, the gap goes to zero: no bias in the target."""
    torch.manual_seed(0)
    decoder = Decoder()
    teacher = lambda s, a: a.flatten(-2)[..., :2].movedim(-1, 0)  # noqa: E731  two "members", each one action entry

    class Student(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(FEATURES + DIM, 1), torch.nn.Identity())

        def forward(self, features, action):
            return self.net(torch.cat([features, action], -1))

    linear = lambda s, w: (w @ decoder.a.T).unflatten(-1, (2, 3))  # noqa: E731
    student = Critic(Student().double(), in_keys=["features", "action"])
    loss = NoiseAliasingLoss(student, teacher, linear, latent_dim=DIM, num_critics=2)
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.05)
    batch = make_batch()
    for _ in range(400):
        value = loss(batch)["loss_noise_aliasing"]
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert value < 1e-4


def test_candidates_are_scored_each_with_its_own_observation():
    _, loss = make_losses()
    batch, w = make_batch(), torch.randn(3, B, DIM, dtype=torch.float64)
    values = loss.candidate_values(batch, w)
    assert values.shape == (N, 3, B)
    for i in range(3):
        by_hand = q_noise_by_hand(loss.q_noise_params, batch, w[i])
        torch.testing.assert_close(values[:, i], by_hand, rtol=1e-6, atol=1e-9)


def test_an_ensemble_of_another_size_is_refused():
    _, loss = make_losses()
    with pytest.raises(UserError, match="must hold 2 members"):
        make_losses(num_critics=2, q_noise_params=loss.q_noise_params)
    with pytest.raises(UserError, match="num_critics"):
        make_losses(num_critics=0)
