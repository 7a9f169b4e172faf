"""The figure of :mod:`benchmarks.offline_failures`: each claim's own curve, and what it all comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Title, metric, and the axis' scale.
PANELS = [
    ("Q of the policy's own actions", "actor/q_mean", "linear"),
    ("weight of Q, λ (TD3+BC)", "actor/lam", "log"),
    ("effective share of the weights", "actor/effective_share", "linear"),
    ("policy entropy", "actor/entropy", "linear"),
    ("temperature α", "actor/alpha", "log"),
    ("std of Q over critics and batch", "q_noise/q_std", "log"),
]


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws the results; methods that were stopped before their evaluation have curves alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(15, 6.2), constrained_layout=True)
    colours = {name: f"C{i}" for i, name in enumerate(results)}
    for axis, (title, metric, scale) in zip(axes.T.flat, PANELS, strict=False):
        for name, result in results.items():
            curves = result.get("curves", {})
            points = [
                (x, y) for x, y in zip(curves.get("updates", []), curves.get(metric, []), strict=False) if y is not None
            ]
            if points:
                axis.plot(*zip(*points, strict=True), color=colours[name], label=name, linewidth=1.2)
        axis.set(title=title, xlabel="updates", yscale=scale)
        axis.grid(alpha=0.3)
    measured = {name: result for name, result in results.items() if "sampled" in result}
    _bars(axes[0, 3], measured, colours, "success once", lambda r, kind: r[kind]["success_once"])
    _bars(axes[1, 3], measured, colours, "error of an action, demonstrations", lambda r, kind: r["chunk_error"][kind])
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _bars(axis: Any, results: dict[str, Any], colours: dict[str, str], title: str, value: Any) -> None:
    """By sample (pale) and by mode."""
    for i, (name, result) in enumerate(results.items()):
        for shift, kind, alpha in ((-0.2, "sampled", 0.4), (0.2, "mode", 1.0)):
            found = value(result, kind)
            if isinstance(found, dict):
                error = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
                axis.bar(i + shift, found["value"], 0.4, yerr=error, color=colours[name], alpha=alpha, capsize=2)
            else:
                axis.bar(i + shift, found, 0.4, color=colours[name], alpha=alpha)
    axis.set_xticks(range(len(results)), list(results), rotation=35, ha="right", fontsize=8)
    axis.set_title(f"{title}\n(pale: sampled, full: mode)", fontsize=10)
    axis.grid(axis="y", alpha=0.3)
