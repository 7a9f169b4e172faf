from __future__ import annotations

import subprocess
import sys

import pytest

from dsrl_torchrl.agents.curve_checks import (
    collapsed_early,
    curve_warnings,
    grew,
    longest_dip,
    ran_away,
    success_curve,
)


def test_longest_dip_counts_consecutive_steps_below_the_margin():
    curve = [(100, 0.5), (200, 0.35), (300, 0.3), (400, 0.45), (500, 0.39), (600, 0.6)]
    assert longest_dip(curve, reference=0.5) == 200  # from 100 to 300; 400 to 500 is shorter
    assert longest_dip(curve, reference=0.35) == 0
    assert longest_dip([], reference=0.5) == 0


def test_ten_points_are_not_more_than_ten():
    for percent in range(10, 101):
        assert longest_dip([(100, 0.5), (200, (percent - 10) / 100)], reference=percent / 100) == 0


def test_what_was_not_measured_is_no_dip():
    assert longest_dip([(2000, 0.3), (2250, 0.3), (2500, 0.6)], reference=0.5) == 250


def test_the_success_curve_leaves_out_rows_without_success():
    rows = [{"env_steps": 10}, {"env_steps": 20, "env/success_running": 0.5}]
    assert success_curve(rows) == [(20, 0.5)]


CHECKS = [
    grew("q_action/td_error", 2.0, "lower the learning rates"),
    grew("q_action/q_mean", 3.0, "more critics", floor=1.0),
    ran_away("actor/alpha", 10.0, "lower target_entropy_per_dim"),
    collapsed_early("actor/entropy", -2.0, "raise alpha_init"),
]
GOOD = {"q_action/td_error": 0.5, "q_action/q_mean": -30.0, "actor/alpha": 0.02, "actor/entropy": -3.0}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("q_action/td_error", [1.0] * 20 + [2.5] * 20, "grew over 2-fold (1 to 2.5): lower the learning rates"),
        ("q_action/q_mean", [-30.0] * 20 + [200.0] * 20, "grew over 3-fold (30 to 200): more critics"),
        ("actor/alpha", [0.01] * 39 + [0.2], "ran away (0.01 to 0.2): lower target_entropy_per_dim"),
        ("actor/entropy", [-100.0] * 40, "collapsed at once (to -100 for 32 noise dimensions): raise alpha_init"),
    ],
)
def test_each_unhealthy_curve_is_named(name, values, message):
    (warning,) = curve_warnings([GOOD | {name: value} for value in values], 32, CHECKS)
    assert name in warning and message in warning
    assert curve_warnings([GOOD] * 40, 32, CHECKS) == []
    assert curve_warnings([GOOD | {name: value} for value in values[:2]], 64, CHECKS) == []
    assert curve_warnings([], 32, CHECKS) == []
    assert curve_warnings([GOOD | {name: value} for value in values], 32, []) == []


def test_small_beginnings_count_as_the_floor():
    rows = [{"q": value} for value in [0.01] * 20 + [2.9] * 20]
    assert curve_warnings(rows, 1, [grew("q", 3.0, "", floor=1.0)]) == []
    assert len(curve_warnings(rows, 1, [grew("q", 3.0, "")])) == 1


def test_what_began_at_zero_did_not_run_away():
    rows = [{"actor/multiplier": value} for value in [0.0] * 20 + [0.001] * 20]
    assert curve_warnings(rows, 1, [ran_away("actor/multiplier", 100.0, "")]) == []


def test_agents_can_list_checks_without_the_drawing_libraries():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['matplotlib', 'tqdm', 'imageio', 'hydra']); "
        "import dsrl_torchrl.agents.curve_checks"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
