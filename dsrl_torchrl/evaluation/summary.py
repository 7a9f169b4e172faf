"""The before/after table: ``summary.json``, the printed table and the learning curve."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from dsrl_torchrl.agents.curve_checks import Panel, longest_dip, success_curve
from dsrl_torchrl.errors import CheckpointError
from dsrl_torchrl.evaluation.evaluate import Evaluation
from dsrl_torchrl.evaluation.figures import plot_learning_curve
from dsrl_torchrl.evaluation.progress import env_steps_to_success
from dsrl_torchrl.evaluation.rates import Rate
from dsrl_torchrl.files import write_json
from dsrl_torchrl.training.metrics_log import read_metrics
from dsrl_torchrl.versions import installed_versions

#: Policies that the learning curve is compared with, by their name in the table; the last one evaluated is where
#: online training started, and what it must not lose.
REFERENCES = {"base_prior": "base policy, prior noise", "stage1": "stage 1"}
STAGE2 = "stage2"


def write_summary(
    folder: Path,
    results: Mapping[str, Evaluation],
    *,
    panels: Sequence[Panel],
    centre: dict,
    stage1: dict,
    stage2: dict,
    config_hash: str,
    title: str,
    say: Callable[[str], None],
) -> dict:
    """Writes ``summary.json`` and ``learning_curve.png`` into ``folder`` and prints the table.

    Args:
        results: by policy name, in the order of the table; ``base_prior`` is among them.
        panels: the agent's, for the learning curve.
        centre: what the search for a noise to steer around recorded, ``env_steps`` among it; empty without one.
        stage1: what stage 1 recorded about itself, its check included; empty before it has run.
        stage2: ``env_steps``, ``updates`` and ``wall_seconds`` of stage 2; empty before it has run.
        config_hash: hash of the configuration that the policies came from.
        title: of the figure.
        say: prints one line.
    """
    references = _references({name: result.success_once for name, result in results.items()})
    rows = _checked_rows(folder, stage2) if stage2 else []
    start, reference = list(references.items())[-1]
    summary = {
        "evaluations": {name: result.to_dict() for name, result in results.items()},
        "env_steps": stage2.get("env_steps", 0),
        "updates": stage2.get("updates", 0),
        "wall_seconds": stage2.get("wall_seconds", 0.0),
        # The budgets that stage 2 was finished with before it was given more.
        "extended_from": stage2.get("extended_from", []),
        # The longest stretch of online training more than 10 points below where it started, in env steps.
        "longest_dip_env_steps": longest_dip(success_curve(rows), reference.value),
        "longest_dip_below": start,
        "env_steps_to_success": env_steps_to_success(rows),
        "centre": centre,
        "stage1": stage1,
        "config_hash": config_hash,
        "versions": installed_versions(),
    }
    written = [folder / "summary.json"]
    write_json(written[0], summary)
    say(format_table(results))
    worse = worse_line(results)
    if worse is not None:
        say(worse)
    if rows:
        if plot_learning_curve(rows, panels, references, folder / "learning_curve.png", title):
            written.append(folder / "learning_curve.png")
        for before in summary["extended_from"]:
            say(f"stage 2 was finished with {before} env steps before it was given more")
        say(
            f"{summary['env_steps']} env steps, {summary['updates']} updates, {summary['wall_seconds']:.0f} s; longest "
            f"stretch over 10 points below {start}: {summary['longest_dip_env_steps']:.0f} env steps"
        )
        say(", ".join(map(str, written)))
    return summary


def redraw_curve(folder: Path, panels: Sequence[Panel], title: str) -> bool:
    """Draws ``learning_curve.png`` again if it is missing, from what is there; whether it did."""
    figure = folder / "learning_curve.png"
    summary = json.loads((folder / "summary.json").read_bytes())
    if figure.exists() or not summary["env_steps"]:
        return False
    rates = {name: Rate(**result["success_once"]) for name, result in summary["evaluations"].items()}
    return plot_learning_curve(logged_rows(folder, summary["env_steps"]), panels, _references(rates), figure, title)


def logged_rows(folder: Path, env_steps: int) -> list[dict[str, float]]:
    """What stage 2 logged; an extension that was cut short has logged more than the finished stage made."""
    return [row for row in read_metrics(folder / "metrics.csv") if row["env_steps"] <= env_steps]


def rows_hash(rows: Sequence[Mapping[str, float]]) -> str:
    """Of their values, which going on rewrites but does not change."""
    return sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _checked_rows(folder: Path, stage2: Mapping[str, Any]) -> list[dict[str, float]]:
    """Those that the finished stage 2 recorded.

    Raises:
        CheckpointError: others.
    """
    rows, path = logged_rows(folder, stage2["env_steps"]), folder / "metrics.csv"
    if path.exists() and stage2.get("logged", rows_hash(rows)) != rows_hash(rows):
        raise CheckpointError(
            f"{path} is damaged: it has not what stage 2 logged; restore it, or remove it to go without its curves"
        )
    return rows


def _references(rates: Mapping[str, Rate]) -> dict[str, Rate]:
    return {label: rates[name] for name, label in REFERENCES.items() if name in rates}


def format_table(results: Mapping[str, Evaluation]) -> str:
    """One line per policy: both success measures with Wilson 95 % intervals, return and length."""
    width = max(22, *(len(name) for name in results))
    head = f"{'policy':<{width}}{'success_once':>24}{'success_at_end':>24}{'return':>9}{'length':>8}"
    lines = [head, "-" * len(head)]
    for name, result in results.items():
        lines.append(
            f"{name:<{width}}{result.success_once!s:>24}{result.success_at_end!s:>24}"
            f"{result.return_mean:>9.1f}{result.length_mean:>8.1f}"
        )
    episodes = next(iter(results.values())).success_once.n
    return "\n".join([*lines, f"{episodes} held-out resets, the same for every policy; Wilson 95 % intervals"])


def worse_line(results: Mapping[str, Evaluation]) -> str | None:
    """Names the policy that succeeds more often than both rows of stage 2, their intervals apart from its own."""
    once = {name: result.success_once for name, result in results.items()}
    after = [rate for name, rate in once.items() if name.startswith(STAGE2)]
    if not after:
        return None
    name, best = max(((n, r) for n, r in once.items() if not n.startswith(STAGE2)), key=lambda item: item[1].value)
    steered = max(after, key=lambda rate: rate.value)
    if steered.high >= best.low:
        return None
    where = ", which is in stage1/" if name.startswith("stage1") else ""
    return f"warning: {name} succeeds more often ({best}) than stage 2 ({steered}): keep that policy{where}"
