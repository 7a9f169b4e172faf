from __future__ import annotations

from dsrl_torchrl.diagnostics import longest_dip


def test_longest_dip_counts_consecutive_steps_below_the_margin():
    curve = [(100, 0.5), (200, 0.35), (300, 0.3), (400, 0.45), (500, 0.39), (600, 0.6)]
    assert longest_dip(curve, reference=0.5) == 200  # from 100 to 300; 400 to 500 is shorter
    assert longest_dip(curve, reference=0.35) == 0
    assert longest_dip([], reference=0.5) == 0
