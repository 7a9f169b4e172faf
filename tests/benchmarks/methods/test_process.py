"""The process of a cell: its steps in order; a diagnosis that fails takes nothing from the result."""

from __future__ import annotations

import sys

import pytest

from benchmarks.methods import process


@pytest.fixture
def ran(monkeypatch):
    """The steps that ran; ``fail`` is what one of them raises."""
    ran: list[str] = []
    fail: dict[str, BaseException] = {}

    def dsrl(words):
        ran.append(words[0])
        if words[0] in fail:
            raise fail[words[0]]

    monkeypatch.setattr(process, "dsrl", dsrl)
    monkeypatch.setattr(process, "ask_to_end_with_parent", lambda: None)
    monkeypatch.setattr(sys, "argv", ["-c", *process.command(["stage1", "diagnose", "eval"], ["seed=0"])[3:]])
    return ran, fail


@pytest.mark.parametrize("error", [None, SystemExit(1), RuntimeError("no critics")])
def test_a_diagnosis_may_fail(ran, error):
    steps, fail = ran
    if error is not None:
        fail["diagnose"] = error
    process.main()
    assert steps == ["stage1", "diagnose", "eval"]


@pytest.mark.parametrize("step, code", [("stage1", 1), ("diagnose", 143)])
def test_a_step_that_fails_or_is_interrupted_ends_the_cell(ran, step, code):
    steps, fail = ran
    fail[step] = SystemExit(code)
    with pytest.raises(SystemExit):
        process.main()
    assert steps[-1] == step
