"""Scales from data: exact, robust to dimensions that never move, closed to NaN."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import BasePolicy, FlowPolicy
from dsrl_torchrl.policies.normalisation import ObservationScale, action_range, clip_outliers


def with_range(low, high):
    policy = BasePolicy(len(low), 4)
    policy.action_low.copy_(low)
    policy.action_high.copy_(high)
    return policy


def test_scales_of_data():
    observations = 3 + 2 * torch.randn(1000, 4).clamp(-3, 3)  # within the clamp, unscaled too
    actions = torch.tensor([0.5, 5.0]) * (torch.rand(1000, 8, 2) - 0.3)
    scale = ObservationScale(4)
    assert not scale.fitted
    assert torch.equal(scale(observations), observations)
    scale.fit(observations)
    assert scale.fitted
    normalised = scale(observations)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(4))
    policy = with_range(*action_range(actions, 2))
    scaled = policy.normalise_action(actions)
    torch.testing.assert_close(scaled.amin((0, 1)), -torch.ones(2))
    torch.testing.assert_close(scaled.amax((0, 1)), torch.ones(2))
    torch.testing.assert_close(policy.denormalise_action(scaled), actions)


def test_a_policy_takes_both_and_tells_its_statistics():
    observations, actions = 3 + 2 * torch.randn(500, 6), 5 * torch.rand(500, 4, 3)
    policy = FlowPolicy(6, 3, 4, in_key=("robot", "state"))
    assert policy.observation_statistics(("robot", "state")) is None  # nothing is known yet
    assert policy.fit_scales(observations, actions) is policy
    mean, std = policy.observation_statistics(("robot", "state"))
    torch.testing.assert_close(mean, observations.mean(0))
    torch.testing.assert_close(std, observations.std(0, correction=0))
    assert policy.observation_statistics("observation") is None
    torch.testing.assert_close(policy.action_low, actions.amin((0, 1)))
    torch.testing.assert_close(policy.action_high, actions.amax((0, 1)))


def test_dimensions_that_never_moved():
    observations, actions = torch.randn(100, 2), torch.rand(100, 4, 2)
    observations[:, 1], actions[..., 1] = 7.0, 1.0
    scale = ObservationScale(2)
    scale.fit(observations)
    assert scale.std[1] == 1.0
    policy = with_range(*action_range(actions, 2))
    decoded = policy.denormalise_action(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert ((decoded[:, 1] - 1.0).abs() <= 0.011).all()
    assert policy.normalise_action(torch.tensor([0.5, 1.0]))[1].abs() < 1e-4


def test_far_observations_are_clipped():
    assert ObservationScale(1)(torch.tensor([1e9])) == 10.0


def test_padding_does_not_widen_the_action_range():
    actions = torch.rand(50, 4, 1)
    actions[:, 3] = 100.0
    valid = torch.ones(50, 4, dtype=torch.bool)
    valid[:, 3] = False
    low, high = action_range(actions, 1, valid)
    assert high < 1.01
    policy = FlowPolicy(1, 1, 4).fit_scales(torch.randn(50, 1), actions, valid)
    assert torch.equal(policy.action_low, low) and torch.equal(policy.action_high, high)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["observation", "action"])
def test_non_finite_data_is_rejected(where, bad):
    data = {"observation": torch.randn(20, 6), "action": torch.rand(20, 4, 3)}
    data[where][3, ..., 0] = bad
    policy = FlowPolicy(6, 3, 4)
    with pytest.raises(UserError, match=f"{where} data holds NaN or infinite") as error:
        policy.fit_scales(data["observation"], data["action"])
    assert "\n" not in str(error.value)
    assert not policy.observation_scale.fitted and (policy.action_high == 1).all()  # nothing was changed


def test_wrong_sizes_and_no_data_are_rejected():
    policy = FlowPolicy(6, 3, 4)
    with pytest.raises(UserError, match=r"\[..., 6\], got \(20, 5\)"):
        policy.fit_scales(torch.randn(20, 5), torch.rand(20, 4, 3))
    with pytest.raises(UserError, match=r"\[..., 3\], got \(20, 4, 2\)"):
        policy.fit_scales(torch.randn(20, 6), torch.rand(20, 4, 2))
    with pytest.raises(UserError, match="without valid observations"):
        policy.fit_scales(torch.randn(0, 6), torch.rand(0, 4, 3))
    with pytest.raises(UserError, match="one flag per action"):
        policy.fit_scales(torch.randn(20, 6), torch.rand(20, 4, 3), torch.ones(20, dtype=torch.bool))


def test_quantile_scaling_keeps_one_outlier_from_squeezing_the_others():
    actions = 2 * torch.rand(1000, 4, 2, generator=torch.Generator().manual_seed(0)) - 1
    actions[17, 2, 1] = 50.0
    clipped = clip_outliers(actions)
    low, high = action_range(clipped, 2)
    expected = torch.quantile(actions.reshape(-1, 2), torch.tensor([0.01, 0.99]), 0)
    torch.testing.assert_close(torch.stack([low, high]), expected)
    for scaled, spread in ((with_range(*action_range(actions, 2)), 0.02), (with_range(low, high), 0.58)):
        assert float(scaled.normalise_action(clipped)[..., 1].std()) == pytest.approx(spread, abs=0.01)
    assert with_range(low, high).normalise_action(clipped).abs().max() <= 1 + 1e-6


def test_quantiles_are_those_of_the_valid_actions():
    actions, valid = torch.rand(500, 4, 2), torch.ones(500, 4, dtype=torch.bool)
    actions[:, 3], valid[:, 3] = 9.0, False
    assert clip_outliers(actions, valid).max() < 1
    assert clip_outliers(actions).max() == 9.0


def test_quantiles_leave_a_gripper_that_seldom_moves():
    actions = torch.cat([torch.rand(1000, 1, 1), torch.ones(1000, 1, 1)], -1)
    actions[40, 0, 1] = -1.0
    assert clip_outliers(actions)[40, 0, 1] == -1.0


def test_quantiles_of_bad_data_are_one_line():
    with pytest.raises(UserError, match="action data holds NaN"):
        clip_outliers(torch.full((3, 2, 1), torch.nan))
    with pytest.raises(UserError, match="without valid"):
        clip_outliers(torch.rand(3, 2, 1), torch.zeros(3, 2, dtype=torch.bool))
