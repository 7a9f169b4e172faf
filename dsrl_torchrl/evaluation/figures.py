"""The curves of a run as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dsrl_torchrl.evaluation.curve_checks import SUCCESS
from dsrl_torchrl.evaluation.evaluate import Rate

Rows = Sequence[dict[str, float]]

#: Of stage 2: metrics drawn in one panel, and the panel's title (SPEC §2, §5).
STAGE2_PANELS: list[tuple[dict[str, str], str]] = [
    ({SUCCESS: "stage 2"}, "training success (running)"),
    ({"sac/td_error": ""}, "TD error"),
    ({"sac/q_mean": "data", "noise_aliasing/q_mean": "$Q^W$, prior", "actor/q_mean": "$Q^W$, policy"}, "mean Q"),
    ({"noise_aliasing/loss": ""}, "distillation loss"),
    ({"sac/alpha": ""}, "temperature α"),
    ({"actor/policy_entropy": ""}, "policy entropy"),
]
STAGE1_PANELS: list[tuple[dict[str, str], str]] = [
    ({"stage1/q_prior": "prior", "stage1/q_policy": "policy"}, "$E[Q^W(s, w)]$ on fixed states"),
    ({"sac/td_error": ""}, "TD error"),
    ({"noise_aliasing/loss": ""}, "distillation loss"),
    ({"aw_mle/effective_candidates": ""}, "effective candidates"),
    ({"aw_mle/loss": "AW-MLE", "sac/actor_loss": "SAC"}, "actor loss"),
]


def plot_learning_curve(rows: Rows, references: Mapping[str, Rate], path: Path, title: str) -> None:
    """Stage 2 over env steps, with held-out successes of other policies as lines and bands.

    Args:
        rows: of ``metrics.csv``.
        references: by label.
        path: the PNG.
        title: of the figure.
    """
    figure, axes = _panels(rows, STAGE2_PANELS, "env_steps", "env steps")
    for colour, (label, rate) in zip(("tab:orange", "tab:green"), references.items(), strict=False):
        axes[0].axhline(rate.value, color=colour, label=label)
        axes[0].axhspan(rate.low, rate.high, color=colour, alpha=0.15)
    axes[0].set_ylim(-0.02, 1.02)
    axes[0].legend(fontsize=8, loc="lower right")
    _save(figure, path, title)


def plot_stage1(rows: Rows, path: Path, title: str) -> None:
    """Stage 1 over gradient updates."""
    figure, _ = _panels(rows, STAGE1_PANELS, "updates", "updates")
    _save(figure, path, title)


def _panels(rows: Rows, panels: list[tuple[dict[str, str], str]], x: str, x_label: str):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    known = {name for row in rows for name in row}
    shown = [(names, title) for names, title in panels if known & names.keys()]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 3.2), constrained_layout=True, squeeze=False)
    for axis, (names, title) in zip(axes[0], shown, strict=True):
        for name, label in names.items():
            points = [(row[x], row[name]) for row in rows if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=label or None)
        if sum(name in known for name in names) > 1:
            axis.legend(fontsize=8)
        axis.set_xlabel(x_label)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    return figure, axes[0]


def _save(figure, path: Path, title: str) -> None:
    from matplotlib import pyplot as plt

    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
