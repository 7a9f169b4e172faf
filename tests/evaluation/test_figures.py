from __future__ import annotations

from dsrl_torchrl.evaluation.evaluate import make_rate
from dsrl_torchrl.evaluation.figures import plot_learning_curve, plot_stage1


def test_the_figures_are_drawn_from_incomplete_rows(tmp_path):
    rows = [
        {"env_steps": 10, "env/success_running": 0.5},
        {"env_steps": 20, "env/success_running": 0.6, "sac/alpha": 1},
    ]
    references = {"base policy, prior noise": make_rate([True, False]), "stage 1": make_rate([True])}
    plot_learning_curve(rows, references, tmp_path / "curve.png", "title")
    rows = [{"updates": 10, "sac/td_error": 0.5}, {"updates": 20, "stage1/q_prior": -1.0}]
    plot_stage1(rows, tmp_path / "stage1.png", "title")
    for name in ("curve.png", "stage1.png"):
        assert (tmp_path / name).stat().st_size > 1000
