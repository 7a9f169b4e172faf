"""The report's figures: held-out success with its intervals, and learning curves over env steps and over time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.methods.results import MODE, SAMPLED, Row
from dsrl_torchrl.evaluation.rates import Rate

MEASURES = ("success_once", "success_at_end")
COLOURS = {SAMPLED: "tab:orange", MODE: "tab:blue"}


def draw_success(task: str, rates: Mapping[str, Mapping[tuple[str, str], Rate]]) -> bytes:
    """A PNG: for each method its success, sampled and by the mode, as a point with its interval.

    Args:
        task: title.
        rates: method -> ``(policy, measure)`` -> success.
    """
    plt = _pyplot()
    height = 1.2 + 0.34 * len(rates)
    figure, axes = plt.subplots(1, 2, figsize=(10, height), sharey=True, constrained_layout=True)
    for axis, measure in zip(axes, MEASURES, strict=True):
        for policy, shift in ((SAMPLED, -0.13), (MODE, 0.13)):
            found = [method[policy, measure] for method in rates.values()]
            value, low, high = (np.array([getattr(rate, end) for rate in found]) for end in ("value", "low", "high"))
            axis.errorbar(
                value,
                np.arange(len(found)) + shift,
                xerr=[np.maximum(value - low, 0), np.maximum(high - value, 0)],
                fmt="o",
                markersize=4,
                capsize=2,
                color=COLOURS[policy],
                label=policy,
            )
        axis.set_xlim(-0.02, 1.02)
        axis.set_xlabel(f"{measure}, held-out resets")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rates)), list(rates))
    axes[0].invert_yaxis()
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    figure.suptitle(task, fontsize=11, x=0.02, ha="left")
    return _png(plt, figure)


def draw_curves(task: str, rows: Sequence[Row], policy: str) -> bytes | None:
    """A PNG of the learning curves: mean over seeds, and the range where there are several; ``None`` without any."""
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    for row in rows:
        if row["policy"] == policy and row["curve"]:
            curves.setdefault(row["method"], []).append(row["curve"])
    if not curves:
        return None
    plt = _pyplot()
    colours = plt.get_cmap("tab20").colors
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.4), sharey=True, constrained_layout=True)
    for i, (method, runs) in enumerate(curves.items()):
        for line, measure in zip(axes, MEASURES, strict=True):
            for axis, over in zip(line, ("env_steps", "seconds"), strict=True):
                _draw_band(axis, runs, over, measure, colours[i % len(colours)], method, "-" if i < 20 else "--")
    for line, measure in zip(axes, MEASURES, strict=True):
        line[0].set_ylabel(measure)
        for axis in line:
            axis.set_ylim(-0.02, 1.02)
            axis.grid(alpha=0.3)
    axes[1, 0].set_xlabel("env steps, rollouts and search included")
    axes[1, 1].set_xlabel("seconds of learning")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(f"{task}: success during training, {policy}; bands: lowest and highest seed", fontsize=11)
    return _png(plt, figure)


def _draw_band(axis, runs, over: str, measure: str, colour, label: str, style: str) -> None:
    """The mean of several runs over the range that all have, and their lowest and highest."""
    lines = [tuple(np.array([point[name] for point in run]) for name in (over, measure)) for run in runs]
    first, last = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    marks = lines[0][0] if len(lines) == 1 else np.unique(np.concatenate([x for x, _ in lines]))
    grid = marks[(marks >= first) & (marks <= last)]
    if not len(grid):
        return
    values = np.stack([np.interp(grid, x, y) for x, y in lines])
    axis.plot(grid, values.mean(0), style, color=colour, label=label, marker="o", markersize=2.5, linewidth=1.2)
    if len(lines) > 1:
        axis.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _png(plt, figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    plt.close(figure)
    return file.getvalue()
