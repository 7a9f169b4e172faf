"""Scales from data: exact, robust to dimensions that never move, closed to NaN."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import FlowPolicy, Normalisation


def test_scales_of_data():
    observations = 3 + 2 * torch.randn(1000, 4)
    actions = torch.tensor([0.5, 5.0]) * (torch.rand(1000, 8, 2) - 0.3)
    scales = Normalisation(4, 2)
    assert not scales.fitted
    scales.fit(observations, actions)
    assert scales.fitted
    normalised = scales.normalise_observation(observations)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(4))
    scaled = scales.normalise_action(actions)
    torch.testing.assert_close(scaled.amin((0, 1)), -torch.ones(2))
    torch.testing.assert_close(scaled.amax((0, 1)), torch.ones(2))
    torch.testing.assert_close(scales.denormalise_action(scaled), actions)


def test_dimensions_that_never_moved():
    observations, actions = torch.randn(100, 2), torch.rand(100, 4, 2)
    observations[:, 1], actions[..., 1] = 7.0, 1.0
    scales = Normalisation(2, 2)
    scales.fit(observations, actions)
    assert scales.observation_std[1] == 1.0
    decoded = scales.denormalise_action(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert ((decoded[:, 1] - 1.0).abs() <= 0.011).all()
    assert scales.normalise_action(torch.tensor([0.5, 1.0]))[1].abs() < 1e-4


def test_far_observations_are_clipped():
    scales = Normalisation(1, 1)
    assert scales.normalise_observation(torch.tensor([1e9])) == 10.0


def test_padding_does_not_widen_the_action_range():
    actions = torch.rand(50, 4, 1)
    actions[:, 3] = 100.0
    valid = torch.ones(50, 4, dtype=torch.bool)
    valid[:, 3] = False
    scales = Normalisation(1, 1)
    scales.fit(torch.randn(50, 1), actions, valid)
    assert scales.action_high < 1.01


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["observation", "action"])
def test_non_finite_data_is_rejected(where, bad):
    data = {"observation": torch.randn(20, 6), "action": torch.rand(20, 4, 3)}
    data[where][3, ..., 0] = bad
    with pytest.raises(UserError, match=f"{where} data holds NaN or infinite") as error:
        FlowPolicy(6, 3, 4).set_normalisation(data["observation"], data["action"])
    assert "\n" not in str(error.value)


def test_wrong_sizes_and_no_data_are_rejected():
    scales = Normalisation(6, 3)
    with pytest.raises(UserError, match=r"\[..., 6\], got \(20, 5\)"):
        scales.fit(torch.randn(20, 5), torch.rand(20, 4, 3))
    with pytest.raises(UserError, match="without valid observations"):
        scales.fit(torch.randn(0, 6), torch.rand(0, 4, 3))
    with pytest.raises(UserError, match="one flag per action"):
        scales.fit(torch.randn(20, 6), torch.rand(20, 4, 3), torch.ones(20, dtype=torch.bool))
