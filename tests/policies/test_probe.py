"""The probe catches what cannot be steered, and the spread is a standard deviation."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import BasePolicy, probe, steerability


class ScaledNoise(BasePolicy):
    """``chunk = factor * noise``: its spread is known."""

    factor = 0.2

    def forward(self, observation, noise):
        self.check_shapes(observation, noise)
        return self.factor * noise


class IgnoresNoise(ScaledNoise):
    factor = 0.0


class Stochastic(ScaledNoise):
    def forward(self, observation, noise):
        return 0.2 * noise + 0.1 * torch.randn_like(noise)


class Diverged(ScaledNoise):
    factor = float("nan")


class OneAction(ScaledNoise):
    def forward(self, observation, noise):
        return noise[..., 0, :]


def test_probe_accepts_policies(policy):
    probe(policy)
    probe(policy, torch.zeros(policy.observation_dim))


@pytest.mark.parametrize(
    ("foreign", "match"),
    [
        (IgnoresNoise, "ignores its noise"),
        (Stochastic, "not deterministic"),
        (Diverged, "NaN or infinite"),
        (OneAction, "shapes must be equal"),
    ],
)
def test_probe_rejects(foreign, match):
    with pytest.raises(UserError, match=match) as error:
        probe(foreign(6, 3, 4))
    assert "\n" not in str(error.value)


def test_spread_is_the_std_over_noise():
    measured = steerability(ScaledNoise(6, 3, 4), torch.randn(200, 6))
    assert measured.spread == pytest.approx(0.2, rel=0.02)
    assert len(measured.per_action_dim) == 3
    assert not measured.too_small
    assert steerability(IgnoresNoise(6, 3, 4), torch.randn(5, 6)).too_small


def test_spread_is_relative_to_the_action_range():
    foreign = ScaledNoise(6, 1, 4)
    foreign.set_normalisation(torch.randn(50, 6), torch.linspace(-2, 2, 50)[:, None, None])
    assert steerability(foreign, torch.randn(200, 6)).spread == pytest.approx(0.1, rel=0.03)


def test_spread_is_reproducible(policy):
    observations = torch.randn(10, policy.observation_dim)
    first = steerability(policy, observations)
    torch.randn(3)
    assert steerability(policy, observations) == first
    assert steerability(policy, observations, seed=1) != first


def test_one_noise_has_no_spread(policy):
    with pytest.raises(UserError, match="n_noises must be an integer of at least 2"):
        steerability(policy, torch.randn(10, policy.observation_dim), n_noises=1)
