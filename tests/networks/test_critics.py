"""The batched ensemble is the ensemble: same values and gradients as member by member."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from dsrl_torchrl.networks import critics
from dsrl_torchrl.networks.critics import Critic, make_q_action, make_q_noise, reduce_ensemble
from dsrl_torchrl.objectives.q_action import QActionLoss

N, FEATURES = 3, 5
LOW, HIGH = -torch.ones(3), 2 * torch.ones(3)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_critic(kind, layer_norm=True, activation=nn.ReLU):
    sizes = {"num_cells": (16, 8), "layer_norm": layer_norm, "activation": activation}
    if kind == "noise":
        return make_q_noise(FEATURES, 6, 1.5, **sizes), torch.randn(4, 7, 6).double()
    return make_q_action(FEATURES, 2, LOW, HIGH, 5.0, **sizes), torch.randn(4, 7, 2, 3).double()


def make_params(critic):
    """N members' parameters ``[N, ...]``, as a TorchRL loss keeps them."""
    loss = QActionLoss(critic, None, None, num_critics=N, backup="min", temperature=0.0).double()
    for key, p in loss.q_action_params.items(True, True):
        if "mlp" in key:
            p.data.add_(0.3 * torch.randn_like(p))
    return loss.q_action_params


def trained(params):
    return [p for p in params.values(True, True) if p.requires_grad]


def observations(*batch):
    return TensorDict({"features": torch.randn(*batch, FEATURES).double()}, batch)


@pytest.mark.parametrize("kind", ["noise", "chunk"])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_values_and_gradients_equal_those_of_each_member(kind, layer_norm, activation):
    critic, action = make_critic(kind, layer_norm, activation)
    params, s = make_params(critic), observations(4, 7)
    results = []
    for ensemble in (critic.ensemble, lambda *args: Critic.ensemble(critic, *args), by_member(critic)):
        w = action.clone().requires_grad_()
        values = ensemble(params, s, w)
        assert values.shape == (N, 4, 7)
        results.append([values, *torch.autograd.grad(values.square().sum(), [*trained(params), w])])
    for batched, vmapped, looped in zip(*results, strict=True):
        torch.testing.assert_close(batched, looped, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(vmapped, looped, rtol=1e-9, atol=1e-11)


def by_member(critic):
    """As any TorchRL loss without vmap would: one member after the other, through a tensordict."""

    def ensemble(params, s, action):
        values = []
        for member in params.unbind(0):
            with member.to_module(critic):
                values.append(critic(s.copy().set(critic.in_keys[-1], action))["state_action_value"].squeeze(-1))
        return torch.stack(values)

    return ensemble


@pytest.mark.parametrize("kind", ["noise", "chunk"])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("rows", [1, 14, 10**6])  # one candidate at a time, two, all
def test_candidates_equal_a_repeated_observation(kind, layer_norm, rows, monkeypatch):
    critic, action = make_critic(kind, layer_norm)
    params, s = make_params(critic), observations(7)  # the first dimension of `action` is of candidates
    expected = critic.ensemble(params, s.expand(4, 7), action)
    monkeypatch.setattr(critics, "ROWS_AT_ONCE", rows)
    values = critic.candidates(params, s, action)
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(Critic.candidates(critic, params, s, action), expected, rtol=1e-9, atol=1e-11)
    gradients = [torch.autograd.grad(v.square().sum(), trained(params)) for v in (values, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_candidates_of_any_leading_dims():
    critic, _ = make_critic("noise")
    params, s = make_params(critic), observations(4, 7)
    noise = torch.randn(3, 4, 7, 6).double()
    values = critic.candidates(params, s, noise)
    assert values.shape == (N, 3, 4, 7)
    for i in range(3):
        torch.testing.assert_close(values[:, i], critic.ensemble(params, s, noise[i]), rtol=1e-9, atol=1e-11)


def test_any_network_of_any_entries_is_an_ensemble():
    """A critic of one's own reads what it likes, images for instance, and needs nothing else."""

    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3 * 4 * 4 + 2 + 6, 1)

        def forward(self, pixels, state, action):
            return self.linear(torch.cat([pixels.flatten(-3), state, action], -1))

    critic = Critic(Pixels().double(), ["pixels", ("agent", "state"), "action"])
    assert critic.observation_keys == ["pixels", ("agent", "state")]
    entries = {"pixels": torch.randn(7, 3, 4, 4).double(), "agent": {"state": torch.randn(7, 2).double()}}
    s, params, noise = TensorDict(entries, [7]), make_params(critic), torch.randn(4, 7, 6).double()
    expected = by_member(critic)(params, s.expand(4, 7), noise)
    torch.testing.assert_close(critic.candidates(params, s, noise), expected)
    torch.testing.assert_close(critic.ensemble(params, s, noise[0]), expected[:, 0])


def test_the_chunk_enters_with_the_gain_and_the_noise_in_units_of_its_bound():
    q_action, q_noise = make_critic("chunk")[0].module, make_critic("noise")[0].module
    chunk = torch.stack([LOW, (LOW + HIGH) / 2, HIGH])  # one action each
    flat = q_action.flat(chunk.unsqueeze(-2).expand(3, 2, 3), q_action.centre, q_action.unit)
    torch.testing.assert_close(flat, torch.tensor([-5.0, 0.0, 5.0]).unsqueeze(-1).expand(3, 6))
    torch.testing.assert_close(q_noise.flat(torch.full((6,), 1.5), q_noise.centre, q_noise.unit), torch.ones(6))


def test_reduction_of_the_ensemble():
    q = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    assert reduce_ensemble(q, "min").tolist() == [1.0, 2.0]
    assert reduce_ensemble(q, "mean").tolist() == [2.0, 3.5]
