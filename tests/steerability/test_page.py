from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from matplotlib.image import imread

from dsrl_torchrl.steerability.best_of_n import best_of_n
from dsrl_torchrl.steerability.critic_gap import CriticGap
from dsrl_torchrl.steerability.critic_ranking import CriticRanking, Estimate, Ranking
from dsrl_torchrl.steerability.page import plot_steerability
from tests.steerability.test_report import FINE

CRITIC = Ranking(
    pearson=Estimate(0.4, 0.2, 0.5), spearman=Estimate(0.4, 0.3, 0.6), gain=Estimate(1.2, -1.2, 3.5),
    share=Estimate(0.24, -0.25, 0.73), std=0.9, across_states=0.8,
)  # fmt: skip
RANKING = CriticRanking(
    q_action=CRITIC, q_noise=CRITIC, return_std=4.4, best_gain=Estimate(4.9, 3.2, 7.1), success=0.8, states=30,
    noises=8, ranked_states=29, repeat_error=0.0, env_steps=15_000,
)  # fmt: skip
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


@pytest.mark.parametrize(
    "report",
    [
        replace(FINE, critic_ranking=RANKING),
        replace(FINE, aliasing=None, bound_share=0.3, critic_ranking=replace(RANKING, q_action=None)),
        replace(FINE, gap_prior=GAP, critic_ranking=replace(RANKING, q_action=None, q_noise=None)),
    ],
)
def test_page_with_the_critics_ranking(report, tmp_path):
    plot_steerability(report, tmp_path / "page.png", "PickCube-v1")
    assert imread(tmp_path / "page.png").shape[:2] == (820, 2250)
