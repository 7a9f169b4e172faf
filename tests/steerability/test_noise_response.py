from __future__ import annotations

from statistics import NormalDist

import pytest
import torch

from dsrl_torchrl.steerability.noise_response import bound_share, decode_normalised, noise_response, prior_noises
from tests.steerability.bases import Decoding, decoder_of, diagonal, observations


def two_sided_tail(z):
    return 2 * NormalDist().cdf(-z)


def test_the_spread_of_an_affine_policy_is_its_gain_times_the_scale():
    decoder = decoder_of(diagonal(*[0.1, 0.3] * 4))
    response = noise_response(decoder, observations(200), scales=(0.5, 1.0, 2.0))
    assert response.spread == pytest.approx([0.1, 0.2, 0.4], rel=0.03)


def test_the_clipped_share_is_the_tail_beyond_the_range():
    decoder = decoder_of(Decoding(lambda noise: (0.5 * noise).clamp(-1, 1)))
    response = noise_response(decoder, observations(200), scales=(0.5, 1.0, 2.0))
    assert response.clipped == pytest.approx([two_sided_tail(4), two_sided_tail(2), two_sided_tail(1)], abs=0.01)


def test_actions_are_scaled_to_the_policys_range():
    policy = diagonal(*[0.2] * 8)
    policy.action_low, policy.action_high = torch.tensor([-2.0, -4.0]), torch.tensor([2.0, 4.0])
    decoder = decoder_of(policy)
    heads = decode_normalised(decoder, observations(3), torch.ones(5, 3, 8))
    assert heads.shape == (5, 3, 4, 2)
    torch.testing.assert_close(heads[0, 0], torch.tensor([[0.1, 0.05]]).expand(4, 2))


def test_only_the_executed_head_counts_and_the_layout_is_the_decoders():
    policy = diagonal(0.2, 0.2, 0.2, 0.2, 0, 0, 0, 0)
    for act_horizon, spread in ((2, 0.2), (4, 0.1)):
        response = noise_response(decoder_of(policy, act_horizon), observations(200), scales=(1.0,))
        assert response.spread[0] == pytest.approx(spread, rel=0.03)
    assert prior_noises(decoder_of(policy, 2, "repeat"), 3, 5, seed=0).shape == (3, 5, 2)


def test_share_of_noises_at_the_bound():
    noises = 1.5 * torch.linspace(-1, 1, 2001)
    assert bound_share(noises, 1.5) == pytest.approx(0.05, abs=2e-3)
    assert bound_share(noises, 3.0) == 0.0
