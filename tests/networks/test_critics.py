"""The batched ensemble is the ensemble: same values and gradients as member by member."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDictParams
from torch import nn

from dsrl_torchrl.networks import critic_mlp
from dsrl_torchrl.networks.action_critic import make_action_critic
from dsrl_torchrl.networks.latent_critic import make_latent_critic
from dsrl_torchrl.networks.encoders import ObservationFeatures
from dsrl_torchrl.objectives.q_action import ActionValueLoss
from dsrl_torchrl.objectives.ensemble import ensemble_values

from ..objectives.macro_batch import Decoder, make_actor

N = 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_critic(kind, layer_norm, activation):
    sizes = {"features": ObservationFeatures(torch.randn(5), torch.rand(5) + 0.5), "num_cells": (16, 8)}
    sizes |= {"layer_norm": layer_norm, "activation": activation}
    if kind == "noise":
        return make_latent_critic(**sizes, latent_dim=6, action_magnitude=1.5), torch.randn(4, 7, 6).double()
    critic = make_action_critic(**sizes, act_horizon=2, action_low=-torch.ones(3), action_high=2 * torch.ones(3))
    return critic, torch.randn(4, 7, 2, 3).double()


def make_params(critic) -> TensorDictParams:
    loss = ActionValueLoss(make_actor(), critic, Decoder(), num_critics=N).double()
    params = loss.action_value_network_params
    for key, p in params.items(True, True):
        if "mlp" in key:
            p.data.add_(0.3 * torch.randn_like(p))
    return params


@pytest.mark.parametrize("kind", ["noise", "chunk"])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_values_and_gradients_equal_those_of_each_member(kind, layer_norm, activation):
    critic, action = make_critic(kind, layer_norm, activation)
    params = make_params(critic)
    trained = [p for p in params.values(True, True) if p.requires_grad]
    observation = torch.randn(4, 7, 5).double()
    results = []
    for off in (False, True):
        w = action.clone().requires_grad_()
        values = ensemble_values(critic, params, observation, w, deactivate_vmap=off)
        assert values.shape == (N, 4, 7)
        results.append([values, *torch.autograd.grad(values.square().sum(), [*trained, w])])
    for batched, looped in zip(*results, strict=True):
        torch.testing.assert_close(batched, looped, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["noise", "chunk"])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("rows", [1, 14, 10**6])  # one candidate at a time, two, all
def test_candidates_equal_a_repeated_observation(kind, layer_norm, rows, monkeypatch):
    critic, action = make_critic(kind, layer_norm, nn.ReLU)
    params = make_params(critic)
    trained = [p for p in params.values(True, True) if p.requires_grad]
    observation = torch.randn(7, 5).double()  # the first dimension of `action` is of candidates
    expected = ensemble_values(critic, params, observation.expand(4, 7, 5), action)
    monkeypatch.setattr(critic_mlp, "ROWS_AT_ONCE", rows)
    values = ensemble_values(critic, params, observation, action)
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-11)
    gradients = [torch.autograd.grad(v.square().sum(), trained) for v in (values, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)
