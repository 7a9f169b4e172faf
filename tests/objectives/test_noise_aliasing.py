"""Distillation against an independent float64 evaluation of SPEC §3, and where its gradient stops."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.objectives.q_action import ActionValueLoss
from dsrl_torchrl.objectives.noise_aliasing import NoiseAliasingLoss
from dsrl_torchrl.objectives.sac import make_sac_loss

from .macro_batch import (
    DIM,
    MAGNITUDE,
    B,
    Decoder,
    N,
    make_actor,
    make_batch,
    make_q_action,
    make_q_noise,
    q_action_by_hand,
    q_noise_by_hand,
)  # fmt: skip


def make_losses(decoder=None, **kwargs):
    torch.manual_seed(0)
    decoder = Decoder() if decoder is None else decoder
    td = ActionValueLoss(make_actor(), make_q_action(), decoder, num_critics=N).double()
    options = {"latent_dim": DIM, "num_critics": N} | kwargs
    return td, NoiseAliasingLoss(make_q_noise(), td.action_values, decoder, **options).double()


def by_hand(td, loss, batch, seed):
    """``(Q^W_i(s, w), Q^A_i(s, decode(s, w)))``, ``[N, B]`` each."""
    torch.manual_seed(seed)
    w = torch.randn(B, DIM, dtype=torch.float64)
    chunk = Decoder()(batch["observation"], w).detach()
    return (
        q_noise_by_hand(loss.noise_value_network_params, batch["observation"], w),
        q_action_by_hand(td.action_value_network_params, batch["observation"], chunk),
    )


@pytest.mark.parametrize("vmap_off", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_loss_equals_the_equation_member_by_member(reduction, vmap_off):
    td, loss = make_losses(reduction=reduction, deactivate_vmap=vmap_off)
    batch = make_batch()
    q, target = by_hand(td, loss, batch, 5)
    torch.manual_seed(5)
    out = loss(batch)
    each = ((q - target) ** 2).sum(0)  # each member has its own target: no min, no mean over the teachers
    expected = {"none": each, "mean": each.mean(), "sum": each.sum()}[reduction]
    torch.testing.assert_close(out["loss_noise_aliasing"], expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out["q_noise"], q, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(out["q_action"], target, rtol=1e-6, atol=1e-9)


def test_gradients_reach_the_noise_critics_alone():
    decoder = Decoder()
    td, loss = make_losses(decoder)
    loss(make_batch())["loss_noise_aliasing"].backward()
    trained = [p for p in loss.noise_value_network_params.values(True, True) if p.requires_grad]
    assert all(p.grad is not None and p.grad.any() for p in trained)
    assert all(p.grad is None for p in [*td.parameters(), *decoder.parameters()])


def test_its_parameters_are_the_noise_critics_alone():
    """An optimiser on ``loss.parameters()`` must move neither the teacher nor the frozen policy."""
    td, loss = make_losses()
    teachers = {p.data_ptr() for p in td.parameters()}
    assert not teachers & {p.data_ptr() for p in loss.parameters()}


def test_only_the_observation_is_read():
    _, loss = make_losses()
    batch = make_batch()
    assert loss.in_keys == ["observation"]
    values = []
    for td_in in (batch, batch.select("observation"), batch.select("observation").rename_key_("observation", "s")):
        if "s" in td_in.keys():
            loss.set_keys(observation="s")
        torch.manual_seed(5)
        out = loss(td_in)
        values.append(out["loss_noise_aliasing"])
        assert set(out.keys()) == set(loss.out_keys)
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


def test_state_dict_restores_the_loss():
    _, loss = make_losses()
    _, other = make_losses()
    for p in other.parameters():
        p.data.normal_()
    other.load_state_dict(loss.state_dict())
    for key, value in loss.noise_value_network_params.items(True, True):
        torch.testing.assert_close(other.noise_value_network_params[key], value)


def test_sac_and_distillation_train_one_noise_critic():
    """In DSRL-NA the actor and temperature terms are SACLoss's, on the ``Q^W`` that is distilled."""
    torch.manual_seed(0)
    actor, decoder = make_actor(), Decoder()
    sac = make_sac_loss(
        actor, make_q_noise(), latent_dim=DIM, action_magnitude=MAGNITUDE, num_critics=N, delay_qvalue=False
    ).double()
    td = ActionValueLoss(actor, make_q_action(), decoder, num_critics=N).double()
    loss = NoiseAliasingLoss(
        sac.qvalue_network, td.action_values, decoder, latent_dim=DIM, num_critics=N,
        noise_value_params=sac.qvalue_network_params,
    )  # fmt: skip
    batch = make_batch()
    critics = [p for p in sac.qvalue_network_params.values(True, True) if p.requires_grad]
    loss(batch)["loss_noise_aliasing"].backward()
    assert all(p.grad is not None and p.grad.any() for p in critics)
    assert all(p.grad is None for p in [*actor.parameters(), *td.parameters()])
    with torch.no_grad():
        for p in critics:
            p.add_(0.1 * torch.randn_like(p))
    observation, w = batch["observation"], torch.randn(B, DIM, dtype=torch.float64)
    torch.testing.assert_close(sac.noise_values(observation, w), loss.noise_values(observation, w))
    sac.zero_grad()
    sac.actor_loss(batch)[0].backward()
    assert all(p.grad is not None for p in actor.parameters())
    assert all(p.grad is None or not p.grad.any() for p in [*critics, *decoder.parameters()])
    assert all(p.grad is None for p in td.action_value_network_params.values(True, True))


def test_distillation_converges_to_the_teacher():
    """With a teacher that a linear student can express, the gap goes to zero: no bias in the target."""
    torch.manual_seed(0)
    decoder = Decoder()
    teacher = lambda s, a: a.flatten(-2)[..., :2].movedim(-1, 0)  # noqa: E731  two "members", each one action entry

    class Student(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(5 + DIM, 1), torch.nn.Identity())

        def forward(self, observation, action):
            return self.net(torch.cat([observation, action], -1))

    from torchrl.modules import ValueOperator

    linear = lambda s, w: (w @ decoder.a.T).unflatten(-1, (2, 3))  # noqa: E731
    loss = NoiseAliasingLoss(
        ValueOperator(Student().double(), in_keys=["observation", "action"]), teacher, linear, latent_dim=DIM
    )
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.05)
    batch = make_batch()
    for _ in range(400):
        value = loss(batch)["loss_noise_aliasing"]
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert value < 1e-4


def test_an_ensemble_of_another_size_is_refused():
    _, loss = make_losses()
    with pytest.raises(UserError, match="must hold 2 members"):
        make_losses(num_critics=2, noise_value_params=loss.noise_value_network_params)
    with pytest.raises(UserError, match="num_critics"):
        make_losses(num_critics=0)
