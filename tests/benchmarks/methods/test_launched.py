"""Cells spread by Hydra's launchers: each is named to its job once what it shares is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.methods import launched
from benchmarks.methods.matrix import Cell, Method, Shared
from benchmarks.methods.process import FACTS
from dsrl_torchrl.cli.sweep import launched_line

SPEC = Method(what="-", source="-", family="DSRL")


def make_cell(output: Path, task: str, method: str) -> Cell:
    shared = Shared(task, 0, output / "tiny" / task / "frozen" / "seed0", (), rollouts=False)
    return Cell(task, method, 0, SPEC, shared, output / "tiny" / task / method / "seed0", (), ("run",), False)


def test_each_job_gets_its_cell_and_a_failure_is_a_line(tmp_path, monkeypatch):
    cells = [make_cell(tmp_path, "near", name) for name in ("a", "b_0.05")] + [make_cell(tmp_path, "far", "a")]
    (tmp_path / "tiny/near/frozen/seed0").mkdir(parents=True)
    (tmp_path / "tiny/near/frozen/seed0" / FACTS).write_text("{}")
    made = []
    monkeypatch.setattr(launched, "run_jobs", lambda jobs, n, say: made.extend(jobs) or [f"{jobs[0].name}: no planner"])
    monkeypatch.setattr(launched, "run_launched", lambda suite, output, cwd, _: [" ".join([suite, *launched_line()])])
    failures = launched.launch_cells(cells, "tiny", tmp_path, ["hydra/launcher=basic"], 0, lambda line: None)
    assert made == [cells[2].shared]
    assert failures == [
        "far/frozen/seed0: no planner",
        "far/a/seed0: far/frozen/seed0 failed",
        "tiny cell=near/a/seed0",
        "tiny cell=near/b_0.05/seed0",
    ]


def test_an_unknown_launcher_is_one_line_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"hydra/launcher='joblip' is not one of .*basic") as refused:
        main(["methods", "suite=smoke", "only=toy/base", "hydra/launcher=joblip"])
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []
