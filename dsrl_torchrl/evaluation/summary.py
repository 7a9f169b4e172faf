"""The before/after table: ``summary.json``, the printed table and the learning curve."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from dsrl_torchrl.evaluation.curve_checks import longest_dip, success_curve
from dsrl_torchrl.evaluation.evaluate import Evaluation, Rate
from dsrl_torchrl.evaluation.figures import plot_learning_curve
from dsrl_torchrl.training.metrics_log import read_metrics
from dsrl_torchrl.cli.artifacts import write_json

PACKAGES = ("torch", "torchrl", "tensordict", "mani_skill", "gymnasium", "numpy", "dsrl-torchrl")


def write_summary(
    folder: Path,
    results: dict[str, Evaluation],
    *,
    stage1: dict,
    stage2: dict,
    config_hash: str,
    title: str,
    say: Callable[[str], None],
) -> dict:
    """Writes ``summary.json`` and ``learning_curve.png`` into ``folder`` and prints the table.

    Args:
        results: by policy name: ``base_prior``, ``base_zero``, ``stage1`` (sampled), ``stage1_deterministic``,
            ``stage2_stochastic``, ``stage2_deterministic``.
        stage1: what stage 1 recorded about itself, its check included; empty before it has run.
        stage2: ``env_steps``, ``updates`` and ``wall_seconds`` of stage 2; empty before it has run.
        config_hash: hash of the configuration that the policies came from.
        title: of the figure.
        say: prints one line.
    """
    references = {"base policy, prior noise": results["base_prior"].success_once}
    if "stage1" in results:
        references["stage 1"] = results["stage1"].success_once
    rows = read_metrics(folder / "metrics.csv") if stage2 else []
    # Online training starts from stage 1 where there is one, and must not lose what that gained.
    start, reference = list(references.items())[-1]
    summary = {
        "evaluations": {name: result.to_dict() for name, result in results.items()},
        "env_steps": stage2.get("env_steps", 0),
        "updates": stage2.get("updates", 0),
        "wall_seconds": stage2.get("wall_seconds", 0.0),
        # The longest stretch of online training more than 10 points below where it started, in env steps.
        "longest_dip_env_steps": longest_dip(success_curve(rows), reference.value),
        "longest_dip_below": start,
        "stage1": stage1,
        "config_hash": config_hash,
        "versions": {name: _version(name) for name in PACKAGES},
    }
    write_json(folder / "summary.json", summary)
    say(format_table(results))
    if rows:
        plot_learning_curve(rows, references, folder / "learning_curve.png", title)
        say(
            f"{summary['env_steps']} env steps, {summary['updates']} updates, {summary['wall_seconds']:.0f} s; longest "
            f"stretch over 10 points below {start}: {summary['longest_dip_env_steps']:.0f} env steps"
        )
        say(f"{folder / 'summary.json'}, {folder / 'learning_curve.png'}")
    return summary


def format_table(results: dict[str, Evaluation]) -> str:
    """One line per policy: both success measures with Wilson 95 % intervals, return and length."""
    head = f"{'policy':<22}{'success_once':>24}{'success_at_end':>24}{'return':>9}{'length':>8}"
    lines = [head, "-" * len(head)]
    for name, result in results.items():
        lines.append(
            f"{name:<22}{_format(result.success_once):>24}{_format(result.success_at_end):>24}"
            f"{result.return_mean:>9.1f}{result.length_mean:>8.1f}"
        )
    episodes = next(iter(results.values())).success_once.n
    return "\n".join([*lines, f"{episodes} held-out resets, the same for every policy; Wilson 95 % intervals"])


def _format(rate: Rate) -> str:
    return f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
