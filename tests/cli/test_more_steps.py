"""A finished run is given more steps."""

from __future__ import annotations

import json
import shutil

import pytest

from dsrl_torchrl.cli.main import main

from .pipeline_run import TINY, fails

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("in_an_empty_folder")
def test_a_finished_run_goes_on_with_more_steps(tmp_path, finished, capsys):
    words = [*TINY, "name=more"]
    more = [*words, "stage2.total_env_steps=560"]
    shutil.copytree(finished / "a", tmp_path / "runs" / "more")
    stage2 = tmp_path / "runs" / "more" / "stage2"
    actor = (stage2 / "actor.safetensors").read_bytes()
    before = json.loads((stage2 / "artifact.json").read_text())["facts"]["env_steps"]

    assert "was finished with stage2.total_env_steps 400: resume=true goes on to 560" in fails(capsys, "run", *more)
    assert "is not finished with these options" in fails(capsys, "eval", *more, "resume=true")
    assert (stage2 / "actor.safetensors").read_bytes() == actor

    main(["run", *more, "resume=true"])
    out = capsys.readouterr().out
    assert "stage 2 was finished with 400 env steps before it was given more" in out
    summary = json.loads((stage2.parent / "summary.json").read_text())
    assert summary["extended_from"] == [400] and summary["env_steps"] >= 560 > before
    assert (stage2 / "actor.safetensors").read_bytes() != actor
    steps = [int(line.split(",")[0]) for line in (stage2.parent / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(set(steps)) and steps[-1] > 520

    refused = fails(capsys, "stage1", *more, "stage1.updates=40", "resume=true")
    assert "began from this stage 1" in refused
    assert "belongs to another configuration" in fails(capsys, "run", *words)
    main(["run", *more])  # all is there
    assert "summary.json (exists)" in capsys.readouterr().out
