"""The promises of ``BasePolicy``, for every policy and network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import DiffusionPolicy

from .conftest import POLICIES, random_inputs


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
def test_any_leading_dims(policy, batch):
    observation, noise = random_inputs(policy, *batch)
    chunk = policy(observation, noise)
    assert chunk.shape == (*batch, policy.pred_horizon, policy.action_dim)
    flat = policy(observation.reshape(-1, policy.observation_dim), noise.reshape(-1, *noise.shape[-2:]))
    torch.testing.assert_close(chunk.reshape(flat.shape), flat)


def test_deterministic_in_observation_and_noise(policy):
    observation, noise = random_inputs(policy, 4)
    first = policy(observation, noise)
    torch.manual_seed(123)
    assert torch.equal(first, policy(observation, noise))
    assert not torch.equal(first, policy(observation, noise + 0.1))
    assert not torch.equal(first, policy(observation + 0.5, noise))


def test_gradient_reaches_the_noise_only_on_request(policy):
    observation, noise = random_inputs(policy, 4)
    assert not policy(observation, noise).requires_grad
    noise.requires_grad_(True)
    (gradient,) = torch.autograd.grad(policy(observation, noise).sum(), noise)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert all(p.grad is None for p in policy.parameters())


def test_frozen_policy_stays_frozen_under_its_parent(policy):
    parent = nn.Sequential(policy)
    parent.train()
    assert parent.training
    assert not any(module.training for module in policy.modules())
    assert not any(p.requires_grad for p in policy.parameters())
    assert copy.deepcopy(policy).train().training is False


def test_trainable_policy_follows_train(trainable):
    assert trainable.train().training
    assert not trainable.eval().training
    assert all(p.requires_grad for p in trainable.parameters())


def test_actions_stay_in_the_range_of_the_data(policy):
    observation, noise = random_inputs(policy, 50)
    chunk = policy(100 * observation, 10 * noise)
    assert (chunk >= policy.action_low - 1e-5).all()
    assert (chunk <= policy.action_high + 1e-5).all()


def test_float64_inputs_are_accepted(policy):
    observation, noise = random_inputs(policy, 4)
    chunk = policy(observation.double(), noise.double())
    assert chunk.dtype == torch.float32
    torch.testing.assert_close(chunk, policy(observation, noise))


@pytest.mark.parametrize(
    ("observation_shape", "noise_shape"),
    [((4, 5), (4, 5, 3)), ((4, 6), (4, 5, 2)), ((4, 6), (4, 4, 3)), ((4, 6), (3, 5, 3)), ((6,), (1, 5, 3))],
)
def test_wrong_shapes_print_both(policy, observation_shape, noise_shape):
    with pytest.raises(UserError, match="got observation") as error:
        policy(torch.zeros(observation_shape), torch.zeros(noise_shape))
    assert str(list(observation_shape)) in str(error.value)
    assert str(list(noise_shape)) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"action_dim": 0}, "action_dim must be an integer of at least 1, got 0"),
        ({"pred_horizon": 2.5}, "pred_horizon must be"),
        ({"obs_horizon": 4}, "multiple of obs_horizon"),
        ({"sampler_steps": 0}, "sampler_steps must be"),
        ({"network": {"kind": "transformer"}}, "mlp, unet"),
        ({"network": {"kind": "mlp", "wdith": 3}}, "wdith"),
        ({"network": {"kind": "unet", "channels": (12,)}}, "multiples of 8"),
    ],
)
@pytest.mark.parametrize("policy_class", POLICIES.values())
def test_bad_arguments(policy_class, kwargs, match):
    arguments = {"observation_dim": 6, "action_dim": 3, "pred_horizon": 4, **kwargs}
    with pytest.raises(UserError, match=match):
        policy_class(**arguments)


def test_more_ddim_steps_than_training_steps():
    with pytest.raises(UserError, match=r"at most train_steps \(10\), got 11"):
        DiffusionPolicy(6, 3, 4, sampler_steps=11, train_steps=10)
