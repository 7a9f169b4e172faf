"""The curves of a run as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dsrl_torchrl.agents.curve_checks import SUCCESS, Panel, Rows
from dsrl_torchrl.evaluation.progress import AT_END, MODE, ONCE
from dsrl_torchrl.evaluation.rates import Rate

SUCCESS_PANEL: Panel = ({SUCCESS: "online training"}, "training success (running)")
EVALUATED_PANELS: tuple[Panel, ...] = tuple(
    ({name: "sampled", f"{name}{MODE}": "mode"}, title)
    for name, title in ((ONCE, "evaluated success, once"), (AT_END, "evaluated success, at the end"))
)
GAIN_PANEL: Panel = ({"stage1/q_prior": "prior", "stage1/q_policy": "policy"}, "$E[Q(s, w)]$ on fixed states")


def plot_learning_curve(
    rows: Rows, panels: Sequence[Panel], references: Mapping[str, Rate], path: Path, title: str
) -> bool:
    """Online training over env steps: its success, the evaluations during it, then the agent's panels.

    Args:
        rows: of ``metrics.csv``.
        panels: the agent's; one whose metrics were never logged is left out.
        references: held-out success once of other policies by label, lines and bands in the panels of success once.
        path: the PNG.
        title: of the figure.

    Returns:
        Whether there was anything to draw.
    """
    shown = _logged(rows, [SUCCESS_PANEL, *EVALUATED_PANELS, *panels])
    if not shown:
        return False
    figure, axes = _draw(rows, shown, "env_steps", "env steps")
    for axis, panel in zip(axes, shown, strict=True):
        if panel is not SUCCESS_PANEL and panel not in EVALUATED_PANELS:
            continue
        axis.set_ylim(-0.02, 1.02)
        if panel is not EVALUATED_PANELS[1]:  # the references are success once
            for index, (label, rate) in enumerate(references.items(), start=len(axis.lines)):
                axis.axhline(rate.value, color=f"C{index}", label=label)
                axis.axhspan(rate.low, rate.high, color=f"C{index}", alpha=0.15)
        axis.legend(fontsize=8, loc="lower right")
    _save(figure, path, title)
    return True


def plot_stage1(rows: Rows, panels: Sequence[Panel], path: Path, title: str) -> bool:
    """Offline training over gradient updates: value of the policy against the prior's, then the agent's panels.

    Arguments and result as in :func:`plot_learning_curve`.
    """
    shown = _logged(rows, [GAIN_PANEL, *panels])
    if not shown:
        return False
    figure, _ = _draw(rows, shown, "updates", "updates")
    _save(figure, path, title)
    return True


def _logged(rows: Rows, panels: Sequence[Panel]) -> list[Panel]:
    known = {name for row in rows for name in row}
    return [panel for panel in panels if known & panel[0].keys()]


def _draw(rows: Rows, panels: Sequence[Panel], x: str, x_label: str):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    n = len(panels)
    figure, axes = plt.subplots(1, n, figsize=(3.6 * n, 3.2), constrained_layout=True, squeeze=False)
    for axis, (names, title) in zip(axes[0], panels, strict=True):
        for name, label in names.items():
            points = [(row[x], row[name]) for row in rows if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=label or None)
        if len(axis.lines) > 1:
            axis.legend(fontsize=8)
        axis.set_xlabel(x_label)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    return figure, axes[0]


def _save(figure, path: Path, title: str) -> None:
    from matplotlib import pyplot as plt

    figure.suptitle(title, fontsize=11, parse_math=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
