"""A finished run is given more steps."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.cli.main import main

from .pipeline_run import TINY, fails

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_an_empty_folder")]


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


CURVE = ("env_steps", "longest_dip_env_steps", "env_steps_to_success", "extended_from")


@pytest.mark.parametrize(("stage", "more"), [("stage2", "stage2.total_env_steps=560"), ("stage1", "stage1.updates=40")])
def test_what_is_given_more_stays_finished_until_that_is_done(tmp_path, finished, monkeypatch, capsys, stage, more):
    """The rows that an interrupted extension logged are none of the finished result's."""
    words = [*TINY, "name=more", "stage2.eval_env_steps=100", "stage2.eval_episodes=2"]
    run = shutil.copytree(finished / "a", tmp_path / "runs" / "more")
    if stage == "stage1":
        shutil.rmtree(run / "stage2")
        words += ["stage2.total_env_steps=0"]
    main(["eval", *words])
    before = json.loads((run / "summary.json").read_text())
    metrics = run / (f"{stage}/metrics.csv" if stage == "stage1" else "metrics.csv")
    rows = metrics.read_text().splitlines()

    with monkeypatch.context() as interrupted, pytest.raises(InterruptedError):
        interrupted.setattr(Agent, "save", lambda *_: (_ for _ in ()).throw(InterruptedError))
        main([stage, *words, more, "resume=true"])
    assert len(metrics.read_text().splitlines()) > len(rows)
    main([stage, *words])
    assert "(exists)" in capsys.readouterr().out
    main(["eval", *words])
    after = json.loads((run / "summary.json").read_text())
    assert [after[name] for name in CURVE] == [before[name] for name in CURVE]


@pytest.mark.parametrize(
    ("stage", "fewer", "named"),
    [
        ("stage2", "stage2.total_env_steps=300", r"400 env steps, more than stage2\.total_env_steps=300"),
        ("stage1", "stage1.updates=10", r"20 updates, more than stage1\.updates=10"),
    ],
)
def test_a_checkpoint_beyond_the_budget_is_not_its_result(tmp_path, finished, capsys, stage, fewer, named):
    """As after an extension, whose finished result was removed to make it again."""
    run = shutil.copytree(finished / "a", tmp_path / "runs" / "fewer")
    (run / stage / "artifact.json").unlink()
    if stage == "stage1":
        shutil.rmtree(run / "stage2")
    error = fails(capsys, stage, *TINY, "name=fewer", fewer, "resume=true")
    assert re.search(named, error) and "choose another name=" in error
    assert not json.loads((run / stage / "artifact.json").read_text())["finished"]
