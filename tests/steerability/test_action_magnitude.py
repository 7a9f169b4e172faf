from __future__ import annotations

from statistics import NormalDist

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.steerability.action_magnitude import CANDIDATES, BoundResponse, choose_action_magnitude, pick_bound
from tests.steerability.bases import Decoding, affine, decoder_of, diagonal, observations

OBSERVATIONS = observations(100)
DIM = 32


def choose(policy, **kwargs):
    return choose_action_magnitude(decoder_of(policy), OBSERVATIONS, **kwargs)


def decoding(function):
    return Decoding(function, pred_horizon=16)


def test_an_own_noise_for_each_action_gets_the_official_default():
    """The corner ±m is outside of the 5 % to 95 % range of N(0, 1), which is ±1.645, from m = 2 on."""
    choice = choose(diagonal(*[0.1] * DIM, pred_horizon=16))
    assert choice.value == 1.5
    rows = {row.magnitude: row for row in choice.table}
    assert rows[1.0].outside < 0.01 and rows[2.5].outside > 0.99
    assert [rows[m].reach for m in CANDIDATES] == pytest.approx([m / 1.645 for m in CANDIDATES], rel=0.05)
    assert {row.clipped for row in choice.table} == {0.0} and choice.prior_clipped == 0.0


def test_many_noises_in_each_action():
    """Random corners of a rotation are N(0, m²) to each action."""
    torch.manual_seed(0)
    choice = choose(affine(0.1 * torch.linalg.qr(torch.randn(DIM, DIM))[0], pred_horizon=16))
    expected = [2 * NormalDist().cdf(-(1.645 + 0.1) / m) for m in CANDIDATES]  # 0.01 of tolerance is 0.1 of a std
    assert [row.outside for row in choice.table] == pytest.approx(expected, abs=0.04)
    assert choice.value == 2.0


def test_a_saturating_decoder_may_have_more():
    assert choose(decoding(lambda w: 0.8 * torch.tanh(2 * w))).value == 2.5


def test_a_decoder_that_breaks_off_outside_of_the_priors_shell_gets_less():
    """The prior's noise has a norm near sqrt(dim); corners of 1.25 have a quarter more."""
    assert choose(decoding(lambda w: 0.05 * w * (1 + 50 * (w.square().mean(-1, True) - 1.4).relu()))).value == 1.0


def test_a_box_that_is_clipped_in_large_part_is_no_use():
    """Clipped beyond |w| = 4/3: the prior 18 % of the time, uniform noise in the box 1 - 4 / (3 m)."""
    choice = choose(decoding(lambda w: (0.75 * w).clamp(-1, 1)))
    assert [row.clipped for row in choice.table] == pytest.approx([max(0, 1 - 4 / 3 / m) for m in CANDIDATES], abs=0.02)
    assert choice.prior_clipped == pytest.approx(2 * NormalDist().cdf(-4 / 3), abs=0.01)
    assert max(row.outside for row in choice.table) < 0.45
    assert choice.value == 1.5


def test_a_decoder_that_reacts_to_large_noise_only_needs_a_box_that_reaches_it():
    """The corners of 1.25 are safe, but all that they make is the middle of what the base makes."""
    choice = choose(decoding(lambda w: 0.3 * w.sign() * (w.abs() - 1.2).relu()), candidates=(1.0, 1.25, 2.0))
    safe, wide = choice.table[1:]
    assert safe.outside <= 0.45 < wide.outside
    assert safe.reach < 0.5 < wide.reach
    assert choice.value == 2.0


def test_actions_that_ignore_the_noise_do_not_hide_the_others():
    assert choose(diagonal(*[0.1] * 8 + [0.0] * 24, pred_horizon=16)).value == 1.5


def test_a_policy_that_ignores_its_noise_gets_the_default():
    choice = choose(diagonal(*[0.0] * DIM, pred_horizon=16))
    assert choice.value == 1.5
    assert "moves no action" in choice.reason


def test_the_reason_holds_the_numbers_in_one_line():
    choice = choose(diagonal(*[0.1] * DIM, pred_horizon=16))
    row = choice.table[2]
    assert f"{row.outside:.0%} of the actions at the corners" in choice.reason and "at 2:" in choice.reason
    assert "\n" not in choice.reason


def test_deterministic_by_seed_and_independent_of_the_order_of_candidates():
    policy = diagonal(*[0.1] * DIM, pred_horizon=16)
    first = choose(policy)
    torch.manual_seed(5)
    assert choose(policy, candidates=CANDIDATES[::-1]) == first
    assert choose(policy, seed=1) != first


def test_the_rule_on_rows_written_by_hand():
    def rows(*outside):
        return [BoundResponse(m, share, 0.0, m) for m, share in zip((1.0, 1.5, 2.0), outside, strict=True)]

    assert pick_bound(rows(0.1, 0.2, 0.3), 0.0).magnitude == 2.0
    assert pick_bound(rows(0.1, 0.2, 0.6), 0.0).magnitude == 1.5
    assert pick_bound(rows(0.6, 0.7, 0.8), 0.0).magnitude == 1.0
    unreachable = [BoundResponse(m, 0.9 * (m > 1), 0.0, 0.1 * m) for m in (1.0, 1.5, 2.0)]
    assert pick_bound(unreachable, 0.0).magnitude == 2.0


@pytest.mark.parametrize("candidates", [(), (0.0, 1.0)])
def test_mistakes_are_one_clear_line(candidates):
    with pytest.raises(UserError, match="must be positive numbers"):
        choose(diagonal(*[0.1] * DIM, pred_horizon=16), candidates=candidates)
    with pytest.raises(UserError, match="needs observations"):
        choose_action_magnitude(decoder_of(diagonal(*[0.1] * 8)), observations(0))
