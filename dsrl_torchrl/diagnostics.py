"""What a run's curves say: the learning curve, and how long success stayed below the base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dsrl_torchrl.evaluation import Rate

SUCCESS = "env/success_running"


def longest_dip(curve: Sequence[tuple[float, float]], base: float, margin: float = 0.10) -> float:
    """The longest stretch, in env steps, that a curve stayed more than ``margin`` below ``base``.

    Args:
        curve: ``(env_steps, success)`` in order.
        base: success of the base policy.
        margin: how far below counts as a dip.
    """
    longest, start, previous = 0.0, None, 0.0
    for step, success in curve:
        if success < base - margin:
            # A point stands for the stretch since the one before it.
            start = previous if start is None else start
            longest = max(longest, step - start)
        else:
            start = None
        previous = step
    return longest


def success_curve(rows: Sequence[dict[str, float]]) -> list[tuple[float, float]]:
    """``(env_steps, running success)`` from the rows of ``metrics.csv``."""
    return [(row["env_steps"], row[SUCCESS]) for row in rows if SUCCESS in row]


def plot_learning_curve(rows: Sequence[dict[str, float]], base: Rate, path: Path, title: str) -> None:
    """Running training success over env steps, with the base policy's held-out success as a line and band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    panels = [
        (SUCCESS, "training success (running)"),
        ("sac/td_error", "TD error"),
        ("sac/q_mean", "mean Q"),
        ("sac/alpha", "temperature α"),
        ("actor/policy_entropy", "policy entropy"),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), constrained_layout=True)
    for axis, (name, label) in zip(axes, panels, strict=True):
        points = [(row["env_steps"], row[name]) for row in rows if name in row]
        axis.plot(*(zip(*points, strict=True) if points else ([], [])), color="tab:blue", label="stage 2")
        axis.set_xlabel("env steps")
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].axhline(base.value, color="tab:orange", label="base policy, prior noise")
    axes[0].axhspan(base.low, base.high, color="tab:orange", alpha=0.15)
    axes[0].set_ylim(-0.02, 1.02)
    axes[0].legend(fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
