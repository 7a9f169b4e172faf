"""Draws ``docs/assets/results.png``: success before and after steering, and the cold start that it has to survive.

Run from the repository: ``.venv/bin/python docs/results_figure.py``. Its numbers are ``docs/assets/results.json``
(successes and episodes, better of sampled and mode, see docs/results.md) and ``benchmarks/results/cold_start.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from dsrl_torchrl.evaluation.rates import wilson_interval

DOCS = Path(__file__).parent
STAGES = {"base": "lightgrey", "stage 1": "tab:cyan", "stage 2": "tab:blue"}
COLD_START = {  # of cold_start.json, its label and colour
    "naive": ("DSRL-NA, 4 updates a step", "tab:red"),
    "fewer updates": ("DSRL-NA, 1 update a step", "tab:orange"),
    "prior-candidate actor": ("actor imitates the prior's better noises", "tab:blue"),
}
ENV_STEPS = (0, 4_000, 8_000, 12_000)


def draw_tasks(axis) -> None:
    """One group a task, one bar a stage."""
    results = json.loads((DOCS / "assets/results.json").read_text())
    for i, counts in enumerate(results.values()):
        stages = [stage for stage in STAGES if stage in counts]
        for j, stage in enumerate(stages):
            successes, n = counts[stage]
            low, high = wilson_interval(successes, n)
            p = successes / n
            x = i + 0.27 * (j - (len(stages) - 1) / 2)
            axis.bar(x, p, 0.25, color=STAGES[stage], yerr=[[p - low], [high - p]], capsize=2, ecolor="dimgrey")
            axis.text(x, 0.02, f"{p:.2f}", ha="center", fontsize=7, color="white" if stage == "stage 2" else "black")
    axis.set_xticks(range(len(results)), list(results), fontsize=8)
    axis.set_ylim(0, 1.16)
    axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axis.set_ylabel("success once, held-out resets")
    axis.set_title("A frozen policy before and after steering", fontsize=10)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in STAGES.values()]
    axis.legend(
        handles, ["base policy", "stage 1, offline", "stage 2, online"], fontsize=8, loc="upper center", ncols=3
    )


def draw_cold_start(axis) -> None:
    """Running success from random networks; one line a seed."""
    found = json.loads((DOCS.parent / "benchmarks/results/cold_start.json").read_text())
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
    figure.savefig(DOCS / "assets/results.png", dpi=110)


if __name__ == "__main__":
    main()
