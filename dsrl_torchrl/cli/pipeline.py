"""The whole line: demos -> base -> stage1 -> stage2 -> eval, each an artifact in the run folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.cli.steps.base import base
from dsrl_torchrl.cli.steps.demos import demos
from dsrl_torchrl.cli.steps.diagnose import diagnose
from dsrl_torchrl.cli.steps.evaluate import evaluate_run, evaluated
from dsrl_torchrl.cli.steps.stage1 import stage1
from dsrl_torchrl.cli.steps.stage2 import stage2


def run_all(run: Run) -> dict | None:
    """All steps; those whose artifacts exist are skipped. Returns the summary, ``None`` where it existed."""
    if not run.stage2_artifact.exists:
        stage2(run)
    elif evaluated(run):
        run.say(f"evaluation: {run.folder / 'summary.json'} (exists)")
        return None
    return evaluate_run(run)


#: What the command line's first word calls.
STEPS: dict[str, Callable[[Run], Any]] = {
    "demos": demos,
    "base": base,
    "stage1": stage1,
    "stage2": stage2,
    "eval": evaluate_run,
    "diagnose": diagnose,
    "run": run_all,
}
