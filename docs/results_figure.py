"""Draws ``docs/assets/results.png``: success before and after steering, and the cold start that it has to survive.

Run from the repository: ``.venv/bin/python -m docs.results_figure``. Its numbers are those of docs/results.md, sampled,
``benchmarks/results/methods_small.json``, and ``benchmarks/results/cold_start.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.methods.report import rates_of
from benchmarks.methods.results import SAMPLED, read_rows, results_path

ROOT = Path(__file__).parents[1]
TASKS = {
    "pick_cube": "PickCube",
    "push_cube": "PushCube",
    "pull_cube": "PullCube",
    "stack_cube": "StackCube",
    "lift_peg_upright": "LiftPegUpright",
}
#: By method of the benchmark: label and colour.
BARS = {
    "base": ("base policy", "lightgrey"),
    "stage1": ("stage 1, offline", "tab:cyan"),
    "dsrl_aw_mle": ("stage 2, online", "tab:blue"),
    "dsrl_aw_mle_centred_stays": ("around a noise, episodes go on", "tab:purple"),
}
COLD_START = {  # of cold_start.json, its label and colour
    "naive": ("DSRL-NA, 4 updates a step", "tab:red"),
    "fewer updates": ("DSRL-NA, 1 update a step", "tab:orange"),
    "prior-candidate actor": ("actor imitates the prior's better noises", "tab:blue"),
}
ENV_STEPS = (0, 4_000, 8_000, 12_000)


def draw_tasks(axis) -> None:
    """One group a task, one bar a method."""
    rows = read_rows(results_path(ROOT / "benchmarks/results", "small"))
    labels = []
    for i, (task, title) in enumerate(TASKS.items()):
        mine = [row for row in rows if row["task"] == task]
        rates = rates_of(mine)
        seeds = {method: sum(row["method"] == method and row["policy"] == SAMPLED for row in mine) for method in BARS}
        labels.append(f"{title}\n{seeds['dsrl_aw_mle']} seeds")
        there = [method for method in BARS if seeds[method]]
        for j, method in enumerate(there):
            rate, colour = rates[method][SAMPLED, "success_once"], BARS[method][1]
            x = i + 0.23 * (j - (len(there) - 1) / 2)
            error = [[rate.value - rate.low], [rate.high - rate.value]]
            axis.bar(x, rate.value, 0.21, color=colour, yerr=error, capsize=2, ecolor="dimgrey")
            fewer, text = seeds[method] < seeds["dsrl_aw_mle"], "white" if method.startswith("dsrl") else "black"
            axis.text(x, 0.02, f"{rate.value:.2f}{'*' * fewer}", ha="center", fontsize=7, color=text)
            if fewer:
                axis.set_xlabel("* fewer seeds, see the table", fontsize=7, loc="right")
    axis.set_xticks(range(len(labels)), labels, fontsize=8)
    axis.set_ylim(0, 1.16)
    axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axis.set_ylabel("success once, sampled, held-out resets")
    axis.set_title("A frozen policy before and after steering", fontsize=10)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, colour in BARS.values()]
    axis.legend(handles, [label for label, _ in BARS.values()], fontsize=7, loc="upper center", ncols=len(BARS))


def draw_cold_start(axis) -> None:
    """Running success from random networks; one line a seed."""
    found = json.loads((ROOT / "benchmarks/results/cold_start.json").read_text())
    base = found["base policy in its rollouts"]["value"]
    for variant, (label, colour) in COLD_START.items():
        for seed in (0, 1):
            running = found[f"{variant}, seed {seed}"]["running_success"]
            axis.plot(
                ENV_STEPS, [base, *running], color=colour, marker="o", markersize=3, label=None if seed else label
            )
    axis.axhline(base, color="grey", linestyle="--", linewidth=1)
    axis.text(ENV_STEPS[-1], base - 0.01, "base policy", ha="right", va="top", fontsize=8, color="dimgrey")
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("env steps")
    axis.set_ylabel("running success")
    axis.set_title("Cold start on PickCube, two seeds", fontsize=10)
    axis.legend(fontsize=8, loc="upper left")


def main() -> None:
    """Writes the figure."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=[3, 2], constrained_layout=True)
    draw_tasks(axes[0])
    draw_cold_start(axes[1])
    for axis in axes:
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    figure.savefig(ROOT / "docs/assets/results.png", dpi=110)


if __name__ == "__main__":
    main()
