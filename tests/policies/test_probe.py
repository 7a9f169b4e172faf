"""The probe catches what cannot be steered, and the spread is a standard deviation."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import BasePolicy, probe, steerability


def observations(n, dim=6):
    return TensorDict({"observation": torch.randn(n, dim)}, [n])


class ScaledNoise(BasePolicy):
    """``chunk = factor * noise``: its spread is known."""

    factor = 0.2

    def forward(self, observation, noise):
        return self.factor * noise


class IgnoresNoise(ScaledNoise):
    factor = 0.0


class Stochastic(ScaledNoise):
    def forward(self, observation, noise):
        return 0.2 * noise + 0.1 * torch.randn_like(noise)


class Diverged(ScaledNoise):
    factor = float("nan")


class ReturnsNoise(ScaledNoise):
    """As a DDIM does whose only step is the last of its schedule."""

    def forward(self, observation, noise):
        return (noise - 0.02 * observation[..., None, :1]).clamp(-1, 1)


class OneAction(ScaledNoise):
    def forward(self, observation, noise):
        return noise[..., 0, :]


class TwoEntries(BasePolicy):
    """More noise than actions, a picture and a nested state."""

    def __init__(self, chunk_horizon=4):
        super().__init__(3, 4, in_keys=["pixels", ("agent", "state")], noise_horizon=6, noise_dim=32)
        self.chunk_horizon = chunk_horizon
        self.asked = []

    def forward(self, pixels, state, noise):
        assert (pixels.dtype, state.dtype, noise.shape[-2:]) == (torch.uint8, torch.float64, (6, 32))
        self.asked.append(len(pixels))
        return 0.2 * noise[..., : self.chunk_horizon, :3]


def two_entries(n):
    pixels = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8)
    return TensorDict({"pixels": pixels, "agent": {"state": torch.randn(n, 2).double()}}, [n])


def test_probe_accepts_policies(policy):
    probe(policy, observations(5, policy.observation_dim))


@pytest.mark.parametrize(
    ("foreign", "match"),
    [
        (IgnoresNoise, "ignores its noise"),
        (Stochastic, "not deterministic"),
        (Diverged, "NaN or infinite"),
        (ReturnsNoise, "returns its noise as the actions .* sampler of too few steps"),
        (OneAction, r"\[batch, pred_horizon, action_dim\] = \[8, 4, 3\], got \[8, 3\]"),
    ],
)
def test_probe_rejects(foreign, match):
    with pytest.raises(UserError, match=match) as error:
        probe(foreign(3, 4), observations(8))
    assert "\n" not in str(error.value)


def test_noise_and_chunk_may_differ_in_shape():
    policy = TwoEntries()
    probe(policy, two_entries(3))
    assert steerability(policy, two_entries(100)).spread == pytest.approx(0.2, rel=0.03)
    with pytest.raises(UserError, match=r"noise \[8, 6, 32\] into .* got \[8, 5, 3\]"):
        probe(TwoEntries(chunk_horizon=5), two_entries(3))


@pytest.mark.parametrize("n", [1, 8, 50])
def test_probe_uses_eight_observations(n):
    policy = TwoEntries()
    probe(policy, two_entries(n))
    assert policy.asked == [8, 8, 8]


def test_probe_needs_an_observation():
    with pytest.raises(UserError, match="without observations"):
        probe(ScaledNoise(3, 4), observations(0))


def test_spread_is_the_std_over_noise():
    measured = steerability(ScaledNoise(3, 4), observations(200))
    assert measured.spread == pytest.approx(0.2, rel=0.02)
    assert len(measured.per_action_dim) == 3
    assert not measured.too_small
    assert steerability(IgnoresNoise(3, 4), observations(5)).too_small


def test_spread_is_relative_to_the_action_range():
    foreign = ScaledNoise(1, 4)
    foreign.action_low, foreign.action_high = torch.tensor([-2.0]), torch.tensor([2.0])
    assert steerability(foreign, observations(200)).spread == pytest.approx(0.1, rel=0.03)


def test_spread_is_reproducible(policy):
    met = observations(10, policy.observation_dim)
    first = steerability(policy, met)
    torch.randn(3)
    assert steerability(policy, met) == first
    assert steerability(policy, met, seed=1) != first


def test_one_noise_has_no_spread(policy):
    with pytest.raises(UserError, match="n_noises must be an integer of at least 2"):
        steerability(policy, observations(10, policy.observation_dim), n_noises=1)


@pytest.mark.parametrize("high", [-1.0, float("nan"), float("inf")])
def test_a_range_in_which_nothing_can_be_compared_is_refused(high):
    policy = Stochastic(2, 4)
    policy.action_high[1] = high
    with pytest.raises(UserError, match="action_low below action_high in every dimension"):
        probe(policy, observations(4))
