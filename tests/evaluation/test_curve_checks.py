from __future__ import annotations

import pytest

from dsrl_torchrl.evaluation.curve_checks import curve_warnings, longest_dip


def test_longest_dip_counts_consecutive_steps_below_the_margin():
    curve = [(100, 0.5), (200, 0.35), (300, 0.3), (400, 0.45), (500, 0.39), (600, 0.6)]
    assert longest_dip(curve, reference=0.5) == 200  # from 100 to 300; 400 to 500 is shorter
    assert longest_dip(curve, reference=0.35) == 0
    assert longest_dip([], reference=0.5) == 0


GOOD = {"sac/td_error": 0.5, "sac/q_mean": -30.0, "sac/alpha": 0.02, "actor/policy_entropy": -3.0}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("sac/td_error", [1.0] * 20 + [2.5] * 20, "TD error doubled"),
        ("sac/q_mean", [-30.0] * 20 + [200.0] * 20, "|Q| tripled"),
        ("sac/alpha", [0.01] * 39 + [0.2], "temperature ran away"),
        ("actor/policy_entropy", [-100.0] * 40, "entropy collapsed at once"),
    ],
)
def test_each_unhealthy_curve_is_named(name, values, message):
    (warning,) = curve_warnings([GOOD | {name: value} for value in values], latent_dim=32)
    assert message in warning
    assert curve_warnings([GOOD] * 40, latent_dim=32) == []
    assert curve_warnings([GOOD | {name: value} for value in values[:2]], latent_dim=64) == []
    assert curve_warnings([], latent_dim=32) == []
