from __future__ import annotations

import pytest
from matplotlib import pyplot as plt

from dsrl_torchrl.evaluation.figures import plot_learning_curve, plot_stage1
from dsrl_torchrl.evaluation.rates import make_rate

PANELS = [
    ({"q_action/td_error": ""}, "TD error"),
    ({"q_action/q_mean": "data", "actor/q_mean": "policy"}, "mean Q"),
    ({"actor/alpha": ""}, "temperature α"),
]
REFERENCES = {"base policy, prior noise": make_rate([True, False]), "stage 1": make_rate([True])}


@pytest.fixture
def titles(monkeypatch):
    """Titles of the panels of every figure that is closed, and the labels in them."""
    drawn, close = [], plt.close

    def record(figure):
        drawn.append({axis.get_title(): [line.get_label() for line in axis.lines] for axis in figure.axes})
        close(figure)

    monkeypatch.setattr(plt, "close", record)
    return drawn


def test_no_panel_is_drawn_for_what_was_never_logged(tmp_path, titles):
    rows = [
        {"env_steps": 10, "env/success_running": 0.5},
        {"env_steps": 20, "env/success_running": 0.6, "actor/alpha": 1.0},
        {"env_steps": 30, "q_action/q_mean": -3.0},
    ]
    assert plot_learning_curve(rows, PANELS, REFERENCES, tmp_path / "curve.png", r"a task named $\foo$")
    assert list(titles[0]) == ["training success (running)", "mean Q", "temperature α"]
    assert titles[0]["training success (running)"] == ["online training", *REFERENCES]
    assert titles[0]["mean Q"] == ["data"]

    rows = [{"updates": 10, "q_action/td_error": 0.5}, {"updates": 20, "stage1/q_prior": -1.0}]
    assert plot_stage1(rows, PANELS, tmp_path / "stage1.png", "title")
    assert list(titles[1]) == ["$E[Q(s, w)]$ on fixed states", "TD error"]
    for name in ("curve.png", "stage1.png"):
        assert (tmp_path / name).stat().st_size > 1000


def test_references_belong_to_the_success_panel_alone(tmp_path, titles):
    rows = [{"env_steps": 10, "q_action/td_error": 0.5}]
    assert plot_learning_curve(rows, PANELS, REFERENCES, tmp_path / "curve.png", "title")
    (panels,) = titles
    assert list(panels) == ["TD error"]
    assert not set(REFERENCES) & set(panels["TD error"])


def test_nothing_logged_is_no_figure(tmp_path):
    assert not plot_learning_curve([{"env_steps": 10}], PANELS, REFERENCES, tmp_path / "curve.png", "title")
    assert not plot_stage1([], PANELS, tmp_path / "stage1.png", "title")
    assert not list(tmp_path.iterdir())
