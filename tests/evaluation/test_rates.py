from __future__ import annotations

import pytest

from dsrl_torchrl.evaluation.rates import make_rate, wilson_interval


def test_wilson_interval_against_published_values():
    # Newcombe 1998, table I: 81/263 and 0/20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


def test_rate():
    rate = make_rate([True, False, True, True])
    assert (rate.value, rate.n) == (0.75, 4)
    assert rate.low < 0.75 < rate.high and str(rate) == "0.75 [0.30, 0.95]"


def test_an_interval_holds_its_own_rate():
    """In floats, too: 4 of 4 was once above its interval, and no noise layout was left to recommend."""
    for n in range(1, 200):
        for rate in (make_rate([True] * n), make_rate([False] * n)):
            assert rate.low <= rate.value <= rate.high
