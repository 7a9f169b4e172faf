"""A benchmark's ratios as bars: one panel per kind of ratio, one bar per case."""

from __future__ import annotations

from benchmarks.ratios import Report


def draw(report: Report, title: str) -> None:
    """Draws ``<folder>/<name>.png``. A ratio's name is ``<case>: <kind>``; bars have the quartiles, lines the goals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[str, dict[str, str]] = {}
    for name in report.ratios:
        case, _, kind = name.partition(": ")
        panels.setdefault(kind, {})[case] = name
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 2.6 * rows), constrained_layout=True, squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (kind, cases) in zip(axes.flat, panels.items(), strict=False):
        for i, name in enumerate(cases.values()):
            found = report.ratios[name]
            below, above = found["median"] - found["low"], found["high"] - found["median"]
            axis.bar(i, found["median"], yerr=[[below], [above]], color="tab:blue", width=0.6, capsize=3)
            if name in report.goals:
                goal = float(report.goals[name].split()[-1])
                axis.hlines(goal, i - 0.4, i + 0.4, color="tab:red")
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_xticks(range(len(cases)), list(cases), rotation=30, ha="right", fontsize=7)
        axis.set_title(kind, fontsize=9)
        axis.grid(axis="y", alpha=0.3)
    figure.suptitle(f"{title}\n(bar: median, whisker: quartiles, red: goal)", fontsize=10)
    path = report.folder / f"{report.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)
    print(f"-> {path}")
