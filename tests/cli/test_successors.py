"""The successors' algorithms through the whole pipeline, from a base policy that exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsrl_torchrl.cli.main import main

from .pipeline_run import SMOKE, fails, loaded

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

#: Those that begin with stage 1, and those that have none.
SUCCESSORS = {"golden_noise": False, "lp_ds": True, "lps": True}


@pytest.mark.parametrize("algorithm", SUCCESSORS)
def test_it_runs_through(finished, capsys, algorithm):
    main(["run", *SMOKE, *loaded(finished / "a" / "base"), f"algorithm={algorithm}", "name=x"])
    out = capsys.readouterr().out
    assert "stage2_deterministic" in out
    assert ("stage1_deterministic" in out) == SUCCESSORS[algorithm]


def test_golden_noise_has_no_stage_1(finished, capsys):
    words = [*SMOKE, *loaded(finished / "a" / "base"), "algorithm=golden_noise", "name=x"]
    assert "GoldenNoise learns nothing offline: run stage2" in fails(capsys, "stage1", *words)
    assert not Path("runs/x/stage1").exists()
