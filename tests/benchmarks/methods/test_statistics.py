"""The two definitions of rliable, by closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.methods.statistics import compare, interquartile_mean, stratified_bootstrap, success
from dsrl_torchrl.evaluation.rates import Rate, wilson_interval


def test_interquartile_mean_is_that_of_the_middle_half():
    assert interquartile_mean(np.array([9.0, -5.0, 1.0, 2.0, 3.0, 4.0, 0.0, 100.0])) == (1 + 2 + 3 + 4) / 4
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3.0  # of three runs none is cut
    assert interquartile_mean(np.array([[0.0, 1.0, 2.0, 50.0], [4.0, 4.0, 4.0, 4.0]])).tolist() == [1.5, 4.0]


def test_resamples_stay_within_their_task():
    """Two tasks that differ, whose runs do not: resampling across tasks would spread, within them nothing changes."""
    assert stratified_bootstrap([[0.2, 0.2, 0.2], [0.8, 0.8, 0.8]]) == pytest.approx((0.5, 0.5))


def test_bootstrap_of_two_runs():
    """Means of resamples of (0, 1) are 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4."""
    assert stratified_bootstrap([[0.0, 1.0]]) == (0.0, 1.0)


def test_bootstrap_of_many_runs_is_that_of_a_mean():
    """Runs at 0 or 1 half each: the middle half's mean spreads like the share of ones, twice as far from the middle."""
    low, high = stratified_bootstrap([[0.0, 1.0] * 200])
    spread = 2 * 1.96 * 0.5 / np.sqrt(400)
    assert low == pytest.approx(0.5 - spread, abs=0.02) and high == pytest.approx(0.5 + spread, abs=0.02)


def test_one_run_has_wilsons_interval_and_several_the_bootstraps():
    assert success([[(94, 100)]]) == Rate(0.94, *wilson_interval(94, 100), 100)
    several = success([[(70, 100), (100, 100), (85, 100)]])
    assert several.value == pytest.approx(0.85) and several.n == 300
    assert (several.low, several.high) == stratified_bootstrap([[0.7, 1.0, 0.85]])
    agree = success([[(85, 100), (85, 100), (85, 100)]])  # nothing to resample: Wilson's of all episodes
    assert agree == Rate(pytest.approx(0.85), *wilson_interval(255, 300), 300)


def test_comparison_says_where_intervals_overlap():
    def rate(low, high):
        return Rate((low + high) / 2, low, high, 100)

    assert compare(rate(0.8, 0.9), rate(0.6, 0.79)) == 1
    assert compare(rate(0.6, 0.79), rate(0.8, 0.9)) == -1
    assert compare(rate(0.6, 0.8), rate(0.8, 0.9)) == 0
