from __future__ import annotations

from dsrl_torchrl.diagnostics import longest_dip, plot_learning_curve
from dsrl_torchrl.evaluation import make_rate


def test_longest_dip_counts_consecutive_steps_below_the_margin():
    curve = [(100, 0.5), (200, 0.35), (300, 0.3), (400, 0.45), (500, 0.39), (600, 0.6)]
    assert longest_dip(curve, base=0.5) == 200  # from 100 to 300; 400 to 500 is shorter
    assert longest_dip(curve, base=0.35) == 0
    assert longest_dip([], base=0.5) == 0


def test_the_figure_is_drawn_from_incomplete_rows(tmp_path):
    rows = [
        {"env_steps": 10, "env/success_running": 0.5},
        {"env_steps": 20, "env/success_running": 0.6, "sac/alpha": 1},
    ]
    plot_learning_curve(rows, make_rate([True, False]), tmp_path / "curve.png", "title")
    assert (tmp_path / "curve.png").stat().st_size > 1000
