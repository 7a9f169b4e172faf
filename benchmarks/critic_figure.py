"""What :mod:`benchmarks.critic_targets` found, as lines, a table and bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Judges of a noise, by their names in the results, with the figure's.
JUDGES = {
    "q": "Q^A",
    "q_noise": "Q^W",
    "predicted_next_state": "value of the predicted next state",
    "next_state": "value of the true next state (needs a simulator)",
}


def line(name: str, outcome: dict[str, Any]) -> str:
    """A variant's correlations within a state, shares of the possible gain and correlations across states."""
    found = [
        f"{judge} {outcome[judge]['pearson']['value']:.2f} "
        f"[{outcome[judge]['pearson']['low']:.2f}, {outcome[judge]['pearson']['high']:.2f}], "
        f"gains {outcome[judge]['share']['value']:.0%}, across {outcome[judge]['across_states']:.2f}"
        for judge in JUDGES
        if judge in outcome
    ]
    return f"{name}: {'; '.join(found)}"


def table(variants: dict[str, Any]) -> str:
    """The page's table: a row a variant and judge."""
    rows = [
        "| Q^A fitted to | judge | Pearson | Spearman | share of the gain | across states | env steps | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for outcome in variants.values():
        for judge, label in JUDGES.items():
            if judge not in outcome:
                continue
            found = outcome[judge]
            seconds = outcome.get("seconds", 0) + (outcome["model"]["seconds"] if judge.startswith("pred") else 0)
            cells = [
                outcome["what"],
                label,
                *(_interval(found[measure]) for measure in ("pearson", "spearman", "share")),
                f"{found['across_states']:.2f}",
                f"{outcome['env_steps']:,}",
                f"{seconds:.0f}" if seconds else "",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def draw(variants: dict[str, Any], path: Path) -> None:
    """Draws correlation and share of the gain of all judges, with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 1.2 + 0.55 * len(variants)), sharey=True, constrained_layout=True)
    titles = {"pearson": "correlation with true returns within a state", "share": "share of the possible gain"}
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for j, (judge, label) in enumerate(JUDGES.items()):
            rows = [(i, outcome[judge][measure]) for i, outcome in enumerate(variants.values()) if judge in outcome]
            if not rows:
                continue
            values = [found["value"] for _, found in rows]
            errors = [[f["value"] - f["low"] for _, f in rows], [f["high"] - f["value"] for _, f in rows]]
            places = [i + 0.2 * (j - 1.5) for i, _ in rows]
            axis.barh(places, values, 0.2, xerr=errors, label=label, color=f"C{j}", error_kw={"linewidth": 0.8})
        axis.set(title=title)
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(variants)), list(variants))
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)
