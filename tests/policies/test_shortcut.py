"""Shortcut models: the self-consistency target in closed form, the step sizes of the loss, 1 step against 8."""

from __future__ import annotations

import math

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import ShortcutBCLoss, ShortcutPolicy
from dsrl_torchrl.training.behaviour_cloning import train_base_policy
from tests.training.test_behaviour_cloning import LEFT, RIGHT, make, two_mode_dataset

from .conftest import NETWORKS, make_policy

RATE = -0.7


class Exponential(ShortcutPolicy):
    """The exact shortcut of ``dx/dt = RATE * x``; remembers the last ``(t, d)`` that it was asked for."""

    def velocity(self, observation, x, t, d):
        self.asked = t, d
        d = d[:, None, None]
        return (torch.exp(RATE * d) - 1) / d * x


def inputs(policy, n):
    """Normalised observation and noisy chunk of ``n`` elements, float64."""
    shape = n, policy.pred_horizon, policy.action_dim
    return torch.randn(n, policy.observation_dim).double(), torch.randn(shape).double()


def by_hand(policy, observation, x, t, d):
    """``s(x_t, t, d)`` for one float d: the level's features beside the observation."""
    angles = -math.log2(d) / math.log2(policy.max_steps) * policy.step_embedding.frequencies
    features = torch.cat([angles.sin(), angles.cos()]).expand(len(x), -1)
    return policy.network(torch.cat([observation, features], -1), x, t)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_exact_shortcut_lands_on_the_solution_in_any_number_of_steps(steps):
    noise = torch.rand(5, 3, 1) - 0.5
    chunk = Exponential(2, 1, 3, sampler_steps=steps)(torch.zeros(5, 2), noise)
    torch.testing.assert_close(chunk, math.exp(RATE) * noise)


@pytest.mark.parametrize("d", [1 / 2, 1 / 4, 1 / 8])
def test_exact_shortcut_is_its_own_target(d):
    policy = Exponential(2, 1, 3).double()
    observation, x = inputs(policy, 6)
    t, d = torch.zeros(6).double(), torch.full((6,), d).double()
    target = policy.two_step_velocity(observation, x, t, d)
    torch.testing.assert_close(target, policy.velocity(observation, x, t, 2 * d), atol=1e-12, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("t", "d"), [(0.0, 1 / 2), (0.5, 1 / 4), (0.75, 1 / 8)])
def test_target_is_the_average_of_two_steps(network, t, d):
    policy = make_policy("shortcut", network).double()
    observation, x = inputs(policy, 6)
    now, later = torch.full((6,), t).double(), torch.full((6,), t + d).double()
    first = by_hand(policy, observation, x, now, d)
    second = by_hand(policy, observation, x + d * first, later, d)
    target = policy.two_step_velocity(observation, x, now, torch.full((6,), d).double())
    torch.testing.assert_close(target, (first + second) / 2, atol=1e-6, rtol=0)
    assert not target.requires_grad


def test_loss_value_and_no_gradient_through_the_target():
    """The loss again with targets that are constants: the same value, the same gradients."""
    policy = make_policy("shortcut").double()
    observation, chunk = inputs(policy, 16)
    parameters = list(policy.parameters())

    torch.manual_seed(0)
    error = policy.squared_error(observation, chunk)

    torch.manual_seed(0)
    x_0, levels, u = torch.randn_like(chunk), torch.randint(3, (4,)), torch.rand(16, dtype=torch.float64)
    expected = []
    for i in range(16):
        d = 0.5 ** int(levels[i]) if i < 4 else 1 / 8
        t = torch.tensor([math.floor(u[i] / d) * d]).double()
        s, x_1, x_t = observation[i : i + 1], chunk[i : i + 1], torch.lerp(x_0[i : i + 1], chunk[i : i + 1], t)
        target = x_1 - x_0[i : i + 1]
        if i < 4:
            first = by_hand(policy, s, x_t, t, d / 2)
            second = by_hand(policy, s, x_t + d / 2 * first, t + d / 2, d / 2)
            target = ((first + second) / 2).detach()
        expected.append((by_hand(policy, s, x_t, t, d) - target).square())
    expected = torch.cat(expected)
    torch.testing.assert_close(error, expected, atol=1e-6, rtol=0)
    for gradient, wanted in zip(
        torch.autograd.grad(error.sum(), parameters), torch.autograd.grad(expected.sum(), parameters), strict=True
    ):
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("max_steps", [2, 8, 32])
def test_loss_trains_what_the_sampler_asks_for(max_steps):
    policy = Exponential(2, 1, 3, sampler_steps=1, max_steps=max_steps)
    policy.squared_error(torch.zeros(4000, 2), torch.zeros(4000, 3, 1))
    t, d = policy.asked
    levels = int(math.log2(max_steps))
    assert (d[1000:] == 1 / max_steps).all()
    counts = torch.stack([(d[:1000] == 0.5**level).sum() for level in range(levels)])
    assert counts.sum() == 1000
    assert (counts > 700 / levels).all()
    assert (t % d == 0).all()
    assert (t >= 0).all()
    assert (t + d <= 1).all()
    for level in range(levels + 1):
        at_level = t[d == 0.5**level]
        assert at_level.unique().numel() == 2**level
        assert at_level.mean().item() == pytest.approx((1 - 0.5**level) / 2, abs=0.1)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_step_size_is_another_condition(network):
    policy = make_policy("shortcut", network).double()
    observation, x = inputs(policy, 4)
    t = torch.zeros(4).double()
    outputs = [policy.velocity(observation, x, t, torch.full((4,), 0.5**level).double()) for level in range(4)]
    for i in range(4):
        for j in range(i):
            assert (outputs[i] - outputs[j]).abs().amax((1, 2)).min() > 1e-4


def test_one_step_and_eight_steps_agree_and_reproduce_the_data():
    policy, loss = make("shortcut")
    train_base_policy(policy, loss, two_mode_dataset(), steps=1000, lr=3e-3, ema_decay=0.99)
    observation, noise = torch.randn(2000, 2), torch.randn(2000, 2, 1)
    goes_right = {}
    for steps in (1, 8):
        policy.sampler_steps = steps
        with torch.no_grad():
            chunk = policy(observation, noise).squeeze(-1)
        right = goes_right[steps] = chunk.mean(-1) > 0.1
        assert 0.4 < right.float().mean() < 0.6
        assert chunk[right].mean().item() == pytest.approx(RIGHT, abs=0.15)  # a flow's one step gives the mean, 0.1
        assert chunk[~right].mean().item() == pytest.approx(LEFT, abs=0.15)
    assert (goes_right[1] == goes_right[8]).float().mean() > 0.9


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"sampler_steps": 3}, r"must be 1, 2, 4 or 8 and at most max_steps \(8\), got 3"),
        ({"sampler_steps": 16, "max_steps": 16}, r"must be 1, 2, 4 or 8 and at most max_steps \(16\), got 16"),
        ({"sampler_steps": 8, "max_steps": 4}, r"at most max_steps \(4\), got 8"),
        ({"max_steps": 6}, "max_steps must be a power of two, got 6"),
        ({"max_steps": 1}, "max_steps must be an integer of at least 2, got 1"),
    ],
)
def test_bad_step_counts(kwargs, match):
    with pytest.raises(UserError, match=match) as error:
        ShortcutPolicy(6, 3, 4, **kwargs)
    assert "\n" not in str(error.value)


def test_batch_too_small_to_split():
    policy = make_policy("shortcut")
    with pytest.raises(UserError, match="needs 4 chunks or more in a batch, got 3"):
        ShortcutBCLoss(policy)(observation=torch.zeros(3, 6), action=torch.zeros(3, 5, 3))
