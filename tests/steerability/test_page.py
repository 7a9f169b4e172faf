from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from matplotlib.image import imread

from dsrl_torchrl.steerability.best_of_n import best_of_n
from dsrl_torchrl.steerability.critic_gap import CriticGap
from dsrl_torchrl.steerability.page import plot_steerability
from tests.steerability.test_report import FINE

GAP = CriticGap(mean=0.1, std=0.2, correlation=0.9, q_action_std=1.0)


@pytest.mark.parametrize(
    "report",
    [
        FINE,
        replace(FINE, bound_share=0.3),
        replace(FINE, gap_prior=GAP),
        replace(FINE, bound_share=0.3, gap_prior=GAP, gap_policy=replace(GAP, mean=3.0, correlation=None)),
        replace(FINE, aliasing=None, left_out=("aliasing is not measured: Server is not differentiable in its noise",)),
        replace(FINE, aliasing=None, gap_prior=GAP),
        replace(FINE, headroom=best_of_n(torch.zeros(1, 20, dtype=torch.bool))),
    ],
)
def test_page(report, tmp_path):
    plot_steerability(report, tmp_path / "page.png", "PickCube-v1")
    assert imread(tmp_path / "page.png").shape[:2] == (820, 1800)
