"""Cells as processes: side by side, failing alone, interrupted and gone on with; and one that is real, end to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.methods import cells as cells_module
from benchmarks.methods.cells import LOG, check_unchanged, is_done, read_record, run_cells
from benchmarks.methods.matrix import Cell, Method, Shared
from benchmarks.methods.process import FACTS
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.files import seal, unseal, write_atomically
from dsrl_torchrl.policies import FlowPolicy, load_policy, save_policy

#: A process that notes in a file when it began and ended.
NOTE = "import sys, time; f = open(sys.argv[1], 'ab', 0); f.write(b'+'); {}; time.sleep({}); f.write(b'-')"
#: Until another has begun, too, however slow the machine is.
NOT_ALONE = "[time.sleep(0.02) for _ in range(3000) if open(sys.argv[1]).read().count('+') < 2]"


@pytest.fixture
def make_cells(tmp_path):
    """Cells of one task and seed, whose base policy is there."""
    folder = tmp_path / "tiny" / "near" / "frozen" / "seed0"
    save_policy(FlowPolicy(2, 2, pred_horizon=4).freeze(), folder / "base")
    (folder / FACTS).write_text(json.dumps({"base": load_policy(folder / "base").content_hash()}))
    shared = Shared("near", 0, folder, (), rollouts=False)
    spec = Method(what="-", source="-", family="DSRL")

    def make(*names: str) -> list[Cell]:
        root = tmp_path / "tiny" / "near"
        return [
            Cell("near", name, 0, spec, shared, root / name / "seed0", (f"a={name}",), ("run",), False)
            for name in names
        ]

    return make


@pytest.fixture
def processes(monkeypatch, tmp_path):
    """What cells run in place of ``dsrl``: Python code by the first letter of their method."""
    code: dict[str, str] = {}
    file = tmp_path / "notes"

    def command(steps, words):
        method = next(word for word in words if word.startswith("a=")).removeprefix("a=")
        return [sys.executable, "-S", "-c", code[method[0]], str(file)]

    monkeypatch.setattr(cells_module, "command", command)
    return code, file


def test_cells_run_side_by_side_once_and_leave_a_record(make_cells, processes):
    code, notes = processes
    code["a"] = NOTE.format(NOT_ALONE, 0.3)
    cells = make_cells("a1", "a2", "a3", "a4", "a5")
    said: list[str] = []
    assert run_cells(cells, 2, said.append) == []
    text, running, most = notes.read_text(), 0, 0
    for mark in text:
        running += 1 if mark == "+" else -1
        most = max(most, running)
    assert most == 2 and text.count("+") == 5 and running == 0
    assert all(is_done(cell) for cell in cells)
    record = read_record(cells[0])
    assert record["finished"] and record["options"] == ["a=a1"] and record["attempts"][0]["exit_code"] == 0
    assert record["attempts"][0]["wall_seconds"] > 0.25 and record["attempts"][0]["cpu_seconds"] > 0
    assert record["base"] == load_policy(cells[0].shared.base).content_hash()
    run_cells(cells, 2, said.append)  # all are done
    assert notes.read_text() == text


def test_a_failing_cell_is_one_line_and_the_rest_goes_on(make_cells, processes, monkeypatch):
    code, _ = processes
    monkeypatch.setattr(cells_module, "commit", lambda: "1234567")
    code |= {"a": "pass", "b": "print('first'); raise SystemExit('dsrl: error: no such thing')"}
    code["k"] = "import os; os.kill(os.getpid(), 9)"
    cells = make_cells("b1", "k1", "a1")
    failures = run_cells(cells, 1, lambda line: None)
    assert failures == [
        f"near/b1/seed0: exit code 1: dsrl: error: no such thing ({cells[0].folder / LOG})",
        f"near/k1/seed0: killed by SIGKILL: it said nothing ({cells[1].folder / LOG})",
    ]
    assert [is_done(cell) for cell in cells] == [False, False, True]
    monkeypatch.setattr(cells_module, "commit", lambda: "7654321")
    code |= {"b": "pass", "k": "pass"}  # whatever it was, the same command goes on
    assert run_cells(cells, 2, lambda line: None) == []
    attempts = read_record(cells[1])["attempts"]
    assert [(one["exit_code"], one["commit"]) for one in attempts] == [(-9, "1234567"), (0, "7654321")]


def test_other_options_are_another_cell_and_want_another_folder(make_cells, processes):
    code, _ = processes
    code["a"] = "pass"
    (cell,) = make_cells("a1")
    run_cells([cell], 1, lambda line: None)
    other = replace(cell, options=("a=a1", "stage2.utd=2"))
    assert is_done(cell) and not is_done(other)
    check_unchanged([cell])
    with pytest.raises(
        UserError, match=rf"{cell.folder} was made with other options \(stage2.utd=2 differ\): remove it"
    ):
        check_unchanged([other])


def test_a_frozen_policy_of_other_words_is_not_taken(make_cells):
    (cell,) = make_cells("a1")
    facts = cell.shared.folder / FACTS
    check_unchanged([cell])  # older than its words
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"words": ["base_policy.training.steps=5"]}))
    check_unchanged([replace(cell, shared=replace(cell.shared, words=("base_policy.training.steps=5",)))])
    with pytest.raises(UserError, match=rf"{cell.shared.folder} was made with other options .*steps=5"):
        check_unchanged([cell])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_ends_the_cells_and_keeps_what_they_cost(make_cells, processes, number):
    code, notes = processes
    code["a"] = NOTE.format("pass", 60)
    cells = make_cells("a1", "a2", "a3")
    before = signal.getsignal(signal.SIGTERM)

    def interrupt():
        while not (notes.exists() and len(notes.read_text()) == 2):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, 2, lambda line: None)
    assert time.monotonic() - started < 30 and notes.read_text() == "++"
    assert signal.getsignal(signal.SIGTERM) == before
    assert [read_record(cell).get("finished") for cell in cells] == [False, False, None]
    code["a"] = "pass"
    assert run_cells(cells, 2, lambda line: None) == []


def test_a_changed_base_policy_is_refused(make_cells, processes):
    code, _ = processes
    code["a"] = "pass"
    (cell,) = make_cells("a1")
    save_policy(FlowPolicy(2, 2, pred_horizon=4).freeze(), cell.shared.base)
    (failure,) = run_cells([cell], 1, lambda line: None)
    assert "was changed" in failure and not is_done(cell)


def test_a_base_policy_that_fails_takes_its_cells_along(make_cells, monkeypatch):
    cells = make_cells("a1", "a2")
    (cells[0].shared.folder / FACTS).unlink()
    fails = [sys.executable, "-S", "-c", "raise SystemExit('no planner')"]
    monkeypatch.setattr(cells_module, "command", lambda steps, words: fails)
    failures = run_cells(cells, 2, lambda line: None)
    assert "no planner" in failures[0]
    assert failures[1:] == [f"near/{name}/seed0: near/frozen/seed0 failed" for name in ("a1", "a2")]


@pytest.mark.slow
def test_a_real_cell_from_checkpoint_to_report(tmp_path: Path, capsys):
    words = ["suite=smoke", "only=toy/dsrl_aw_mle", f"output={tmp_path}"]
    main(["methods", *words])
    assert "[2/2] toy/dsrl_aw_mle/seed0: started" in capsys.readouterr().out
    file = (tmp_path / "methods_smoke.json").read_text()
    rows = json.loads(file)["rows"]
    assert [(row["method"], row["policy"]) for row in rows] == [("dsrl_aw_mle", "sampled"), ("dsrl_aw_mle", "mode")]
    frozen, cell = tmp_path / "smoke/toy/frozen/seed0", tmp_path / "smoke/toy/dsrl_aw_mle/seed0"
    assert rows[0]["base"] == load_policy(frozen / "base").content_hash()
    shared = "stage1/rollouts.safetensors"
    assert (frozen / "rollouts" / shared).read_bytes() == (cell / shared).read_bytes()
    assert "base rollouts:" not in (cell / LOG).read_text()  # they were there
    assert (
        rows[0]["env_steps"]
        == rows[0]["rollout_env_steps"] + json.loads((cell / "summary.json").read_text())["env_steps"]
    )
    assert rows[0]["rollout_env_steps"] >= 100 and not list(cell.rglob("checkpoints"))
    page = (tmp_path / "smoke/report.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page
    assert json.loads((frozen / FACTS).read_text())["words"]
    main(["methods", *words])  # done: nothing is started
    assert "started" not in capsys.readouterr().out and (tmp_path / "methods_smoke.json").read_text() == file
    # Rollouts that are older than an option are still those of its default.
    marker = frozen / "rollouts/stage1/rollouts.json"
    stored = unseal(marker)
    del stored["config"]["centre_env_steps"]
    write_atomically(marker, seal(stored))
    shutil.rmtree(cell)
    main(["methods", *words])
    assert "base rollouts:" not in (cell / LOG).read_text()
