"""Euler and DDIM against closed forms: networks that are known functions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import DiffusionPolicy, FlowPolicy


class Formula(nn.Module):
    """A 'network' that is a formula of ``(x, t)``."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, observation, x, t):
        return self.function(x, t[:, None, None])


def with_formula(policy, function):
    policy.network = Formula(function)
    return policy.freeze()


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_euler_on_a_constant_velocity(steps):
    policy = with_formula(FlowPolicy(2, 1, 3, sampler_steps=steps), lambda x, t: torch.full_like(x, 0.25))
    noise = torch.rand(5, 3, 1) - 0.5
    torch.testing.assert_close(policy(torch.zeros(5, 2), noise), noise + 0.25)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_euler_on_a_linear_velocity(steps):
    policy = with_formula(FlowPolicy(2, 1, 3, sampler_steps=steps), lambda x, t: -0.5 * x + t)
    noise = torch.rand(5, 3, 1) - 0.5
    expected = noise.clone()
    for i in range(steps):
        expected = (1 - 0.5 / steps) * expected + i / steps**2
    torch.testing.assert_close(policy(torch.zeros(5, 2), noise), expected)


def test_euler_clips_to_the_action_range():
    policy = with_formula(FlowPolicy(2, 1, 3), lambda x, t: 100 * torch.ones_like(x))
    assert (policy(torch.zeros(5, 2), torch.zeros(5, 3, 1)) == 1).all()


def alpha_bar_at(policy, t):
    return policy.alpha_bars[(t * policy.train_steps).round().long()]


@pytest.mark.parametrize("steps", [4, 5, 10, 26, 100])
def test_ddim_on_data_at_one_point(steps):
    policy = DiffusionPolicy(2, 1, 3, sampler_steps=steps)

    def epsilon(x, t):
        alpha_bar = alpha_bar_at(policy, t)
        return (x - alpha_bar.sqrt() * 0.3) / (1 - alpha_bar).sqrt()

    chunk = with_formula(policy, epsilon)(torch.zeros(5, 2), torch.randn(5, 3, 1))
    torch.testing.assert_close(chunk, torch.full_like(chunk, 0.3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [4, 5, 10])
def test_ddim_on_gaussian_data_carries_the_noise(steps):
    policy = DiffusionPolicy(2, 1, 3, sampler_steps=steps)
    with_formula(policy, lambda x, t: (1 - alpha_bar_at(policy, t)).sqrt() * x)  # the data is N(0, I)
    noise = 0.1 * torch.randn(5, 3, 1)
    stride = 100 // steps
    expected = noise.clone()
    for t in range((steps - 1) * stride, -1, -stride):
        now = policy.alpha_bars[t]
        following = policy.alpha_bars[t - stride] if t else torch.tensor(1.0)
        expected = expected * ((following * now).sqrt() + ((1 - following) * (1 - now)).sqrt())
    torch.testing.assert_close(policy(torch.zeros(5, 2), noise), expected)
    assert expected.abs().max() > 0.05


@pytest.mark.parametrize(
    ("steps", "train_steps", "better"),
    [(1, 100, 4), (2, 100, 4), (3, 100, 4), (51, 100, 50), (60, 100, 50), (34, 100, 33), (2, 10, 5), (1, 2, 2)],
)
def test_a_sampler_that_would_start_in_the_middle_of_its_schedule_is_refused(steps, train_steps, better):
    """With one step of 100 the noise itself would come out as the chunk."""
    with pytest.raises(
        UserError, match=f"sampler_steps={steps} would start in the middle .* use {better}, or"
    ) as error:
        DiffusionPolicy(2, 1, 3, sampler_steps=steps, train_steps=train_steps)
    assert "\n" not in str(error.value)
    DiffusionPolicy(2, 1, 3, sampler_steps=better, train_steps=train_steps)


def test_the_published_robomimic_setting_starts_in_noise():
    """ajwagen/dsrl, cfg/robomimic/dsrl_can.yaml: ``ddim_steps: 8`` of ``denoising_steps: 20`` begin at t = 14."""
    DiffusionPolicy(2, 1, 3, sampler_steps=8, train_steps=20)


@pytest.mark.parametrize("train_steps", [1, 2, 3, 7, 100])
def test_as_many_steps_as_there_are_always_start_at_the_end(train_steps):
    DiffusionPolicy(2, 1, 3, sampler_steps=train_steps, train_steps=train_steps)


def test_cosine_schedule():
    alpha_bars = DiffusionPolicy(2, 1, 3).alpha_bars
    assert alpha_bars.shape == (100,)
    assert (alpha_bars.diff() < 0).all()
    assert alpha_bars[0] > 0.99
    assert 0 < alpha_bars[-1] < 1e-3
    # halfway: cos²((0.5 + s) / (1 + s) π / 2) / cos²(s / (1 + s) π / 2), s = 0.008
    assert alpha_bars[49].item() == pytest.approx(0.4939, abs=1e-3)
