"""What ``profile=true`` leaves: a table, ``profile.json``, ``figures/profile.png``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dsrl_torchrl.files import write_json

#: Wall and CPU seconds by category.
Seconds = Mapping[str, Sequence[float]]
#: Narrower parts of a bar get no number.
LABELLED = 0.04
#: Time in which nothing of the run's own is done.
GREY = {"waiting": "0.9", "imports, start": "0.75", "rest": "0.6"}


def report(
    main: Sequence[Seconds], workers: Sequence[Seconds], folder: Path, title: str, say: Callable[[str], None]
) -> None:
    """Prints, stores and draws a profile.

    Args:
        main: of the main process.
        workers: of each worker process.
        folder: of the run.
        title: of the figure.
        say: prints one line to the user.
    """
    counts = {"main process": len(main), "worker processes": len(workers)}
    kinds = {kind: total(all_) for kind, all_ in zip(counts, (main, workers), strict=True) if all_}
    for line in table(kinds, counts):
        say(line)
    values = {
        kind: {
            "processes": counts[kind],
            "wall_seconds": {name: wall for name, (wall, _) in seconds.items()},
            "cpu_seconds": {name: cpu for name, (_, cpu) in seconds.items()},
        }
        for kind, seconds in kinds.items()
    }
    write_json(folder / "profile.json", values)
    figure = folder / "figures" / "profile.png"
    figure.parent.mkdir(exist_ok=True)
    draw(kinds, counts, figure, title)
    say(f"profile: {folder / 'profile.json'}, {figure}")


def total(processes: Sequence[Seconds]) -> dict[str, tuple[float, float]]:
    """The seconds of several processes together."""
    names = dict.fromkeys(name for seconds in processes for name in seconds)
    return {
        name: (sum(each[name][0] for each in there), sum(each[name][1] for each in there))
        for name in names
        if (there := [each for each in processes if name in each])
    }


def table(kinds: Mapping[str, Seconds], counts: Mapping[str, int]) -> Iterator[str]:
    """The lines of the printed table, the most expensive category first."""
    yield f"{'profile':30}" + "".join(f"{_named(kind, counts[kind]):>30}" for kind in kinds)
    yield f"{'':30}" + f"{'wall s':>14}{'':>8}{'CPU s':>8}" * len(kinds)
    for name in ordered(kinds):
        yield f"{name:30}" + "".join(_cells(seconds, seconds.get(name, (0.0, 0.0))) for seconds in kinds.values())
    yield f"{'all':30}" + "".join(_cells(seconds, _sums(seconds)) for seconds in kinds.values())


def ordered(kinds: Mapping[str, Seconds]) -> list[str]:
    """All categories, by wall seconds."""
    names = dict.fromkeys(name for seconds in kinds.values() for name in seconds)
    return sorted(names, key=lambda name: -sum(seconds[name][0] for seconds in kinds.values() if name in seconds))


def _named(kind: str, count: int) -> str:
    return kind if kind.startswith("main") else f"{count} {kind}"


def _cells(seconds: Seconds, cell: Sequence[float]) -> str:
    wall, cpu = cell
    return f"{wall:14.1f}{wall / _sums(seconds)[0]:8.1%}{cpu:8.1f}"


def _sums(seconds: Seconds) -> tuple[float, float]:
    return max(sum(wall for wall, _ in seconds.values()), 1e-9), sum(cpu for _, cpu in seconds.values())


def draw(kinds: Mapping[str, Seconds], counts: Mapping[str, int], path: Path, title: str) -> None:
    """A stacked bar for each kind of process: shares of its wall seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in ordered(kinds) if name not in GREY]
    colours = dict(zip(names, [*plt.get_cmap("tab20")(range(20))] * (len(names) // 20 + 1), strict=False)) | GREY
    figure, axis = plt.subplots(figsize=(9, 1.6 + 0.9 * len(kinds)), constrained_layout=True)
    left = dict.fromkeys(kinds, 0.0)
    for name in [*names, *GREY]:
        shares = [seconds.get(name, (0.0, 0.0))[0] / _sums(seconds)[0] for seconds in kinds.values()]
        bars = axis.barh(list(kinds), shares, left=list(left.values()), color=colours[name], label=name)
        axis.bar_label(
            bars, [f"{share:.0%}" if share > LABELLED else "" for share in shares], label_type="center", fontsize=8
        )
        left = {kind: end + share for (kind, end), share in zip(left.items(), shares, strict=True)}
    labels = []
    for kind, seconds in kinds.items():
        wall, cpu = _sums(seconds)
        labels.append(f"{_named(kind, counts[kind])}\n{wall:.0f} s, {cpu:.0f} s of CPU")
    axis.set_yticks(range(len(kinds)), labels, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axis.set_xlabel("wall time")
    figure.legend(fontsize=8, ncols=4, loc="outside lower center", frameon=False)
    figure.suptitle(title, fontsize=11, parse_math=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
