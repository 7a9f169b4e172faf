from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dsrl_torchrl.networks.latent_actor import make_latent_actor
from dsrl_torchrl.networks.latent_critic import make_latent_critic
from dsrl_torchrl.networks.encoders import ObservationFeatures
from dsrl_torchrl.latent_env.prior_noise import PriorNoise

SIZES = {"latent_dim": 3, "action_magnitude": 1.2, "num_cells": (16, 16)}


def features():
    return ObservationFeatures(torch.zeros(5), torch.ones(5))


def test_the_first_policy_is_zero_mean_noise_of_the_asked_width():
    actor = make_latent_actor(features=features(), initial_std=0.3, **SIZES)
    td = TensorDict({"observation": torch.randn(5000, 5)}, [5000])
    with set_exploration_type(ExplorationType.RANDOM):
        w = actor(td.clone())["action"].detach()
    assert w.abs().max() <= 1.2
    assert w.std() == pytest.approx(1.2 * 0.28, abs=0.02)  # tanh narrows 0.3 a little
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert actor(td.clone())["action"].abs().max() < 0.05


def test_any_leading_dims():
    td = TensorDict({"observation": torch.randn(2, 4, 5)}, [2, 4])
    td = make_latent_actor(features=features(), **SIZES)(td)
    assert td["action"].shape == (2, 4, 3)
    assert make_latent_critic(features=features(), **SIZES)(td)["state_action_value"].shape == (2, 4, 1)


def test_log_prob_is_a_density_over_the_box():
    """Integrates to one over ±magnitude, one dimension, by the trapezoid rule."""
    sizes = SIZES | {"latent_dim": 1}
    actor = make_latent_actor(features=features(), initial_std=0.8, **sizes)
    grid = torch.linspace(-1.2 + 1e-4, 1.2 - 1e-4, 20001).unsqueeze(-1)
    td = TensorDict({"observation": torch.zeros(1, 5)}, [1])
    density = actor.get_dist(td).log_prob(grid.unsqueeze(1)).exp().reshape(-1).detach()
    assert torch.trapezoid(density, grid.squeeze(-1)).item() == pytest.approx(1.0, abs=1e-3)


def test_prior_noise_is_plain_and_unbounded():
    torch.manual_seed(0)
    td = TensorDict({"observation": torch.zeros(4000, 5)}, [4000])
    w = PriorNoise(3)(td)["action"]
    assert w.std() == pytest.approx(1.0, abs=0.03)
    assert w.abs().max() > 2.5
    assert not PriorNoise(3, scale=0.0)(td)["action"].any()
