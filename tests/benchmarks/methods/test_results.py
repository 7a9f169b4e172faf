"""Rows: what is read from a run folder, and learning curves' env steps by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.methods import cells, launched, results
from benchmarks.methods.cells import RECORD
from benchmarks.methods.matrix import Cell, Method, Shared, Suite
from benchmarks.methods.process import FACTS
from benchmarks.methods.results import (
    cell_rows,
    check_kept,
    gather,
    learning_curve,
    reached,
    read_rows,
    write_results,
)
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.files import seal, write_atomically

METRICS = """env_steps,env/success_running,{0}/{1}_once,{0}/{1}_at_end,{0}/{1}_once_mode,{0}/{1}_at_end_mode
1000,0.4,0.5,0.1,0.6,0.5
1500,0.45,,,,
2000,0.5,0.74,0.2,0.9,0.8
4000,0.7,0.76,0.3,0.8,0.7
""".format("eval", "success")


def rate(successes: int, n: int) -> dict[str, float]:
    return {"value": successes / n, "low": 0.0, "high": 1.0, "n": n}


@pytest.fixture
def cell(tmp_path: Path):
    """Makes a cell that is done, with a summary as ``dsrl run`` writes it."""

    def make(method: str = "two_stage", base: str = "abc") -> Cell:
        folder = tmp_path / "near" / method / "seed0"
        folder.mkdir(parents=True)
        shared = Shared("near", 0, tmp_path / "near" / "frozen" / "seed0", (), rollouts=True)
        spec = Method(what="-", source="-", family="DSRL")
        made = Cell("near", method, 0, spec, shared, folder, ("seed=0",), ("run",), rollouts=False)
        policy = {"return_mean": 0.0, "length_mean": 0.0}
        summary = {
            "evaluations": {
                "stage2_stochastic": policy | {"success_once": rate(7, 9), "success_at_end": rate(1, 9)},
                "stage2_deterministic": policy | {"success_once": rate(8, 9), "success_at_end": rate(6, 9)},
            },
            "env_steps": 4000,
            "updates": 300,
            "wall_seconds": 80.0,
            "longest_dip_env_steps": 0.0,
            "stage1": {"updates": 100, "wall_seconds": 20.0},
            "versions": {"torch": "2.13.0"},
        }
        attempts = [{"wall_seconds": 30.0, "cpu_seconds": 20.0}, {"wall_seconds": 90.0, "cpu_seconds": 85.0}]
        record = {"options": ["seed=0"], "steps": ["run"], "commit": "1234567", "base": base, "attempts": attempts}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.csv").write_text(METRICS)
        (folder / RECORD).write_text(json.dumps(record | {"finished": True}))
        return made

    return make


def test_a_cell_is_a_row_for_its_policy_sampled_and_by_its_mode(cell):
    sampled, mode = cell_rows(cell())
    assert (sampled["policy"], sampled["success_once"], sampled["success_at_end"], sampled["episodes"]) == (
        "sampled",
        7,
        1,
        9,
    )
    assert (mode["policy"], mode["success_once"], mode["success_at_end"]) == ("mode", 8, 6)
    assert sampled["updates"] == 400 and sampled["learning_seconds"] == 100.0
    assert sampled["cell_seconds"] == 120.0 and sampled["cpu_seconds"] == 105.0  # both attempts
    assert (sampled["commit"], sampled["base"], sampled["ranking"]) == ("1234567", "abc", None)
    assert [point["success_once"] for point in mode["curve"]] == [0.6, 0.9, 0.8]
    assert mode["reached"] == {"50%": 1000, "75%": 2000, "90%": 2000}
    assert sampled["reached"] == {"50%": 1000, "75%": 4000, "90%": None}


def test_the_env_steps_of_a_search_are_the_cells_own(cell):
    made = cell()
    path = made.folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"centre": {"env_steps": 500}}))
    _, mode = cell_rows(made)
    assert (mode["env_steps"], mode["rollout_env_steps"]) == (4500, 0)
    assert mode["reached"] == {"50%": 1500, "75%": 2500, "90%": 2500}
    assert [point["env_steps"] for point in mode["curve"]][-1] == 4500


def test_the_env_steps_that_find_a_subspace_are_the_cells_own(cell):
    made = cell()
    (made.folder / "subspace").mkdir()
    for facts, taken in (({}, 4000), ({"env_steps": 300}, 4300)):  # the first is older than the count
        write_atomically(made.folder / "subspace" / "artifact.json", seal({"facts": facts}))
        assert cell_rows(made)[1]["env_steps"] == taken


def test_a_cell_that_was_gone_on_with_names_both_commits(cell):
    made = cell()
    record = json.loads((made.folder / RECORD).read_text())
    for attempt, commit in zip(record["attempts"], ("1111111", "2222222"), strict=True):
        attempt["commit"] = commit
    (made.folder / RECORD).write_text(json.dumps(record))
    assert cell_rows(made)[0]["commit"] == "1111111, 2222222"


def test_a_curves_env_steps_have_the_rollouts_and_its_seconds_stage_1():
    rows = [{"env_steps": 500.0, "eval/success_once": 0.5, "eval/success_at_end": 0.1}, {"env_steps": 1000.0}]
    (point,) = learning_curve(rows, "sampled", rollouts=200, online=1000, before=20.0, seconds=100.0)
    assert point == {"env_steps": 700, "seconds": 20 + 80 * 500 / 1000, "success_once": 0.5, "success_at_end": 0.1}


def test_what_is_never_reached_is_none():
    assert reached([]) == {"50%": None, "75%": None, "90%": None}


def test_rows_are_one_a_line_and_come_back(cell, tmp_path):
    made = cell()
    rows = gather(suite := Suite("tiny", "-", {}, {}, (made,)))
    write_results(tmp_path / "methods_tiny.json", suite, rows)
    assert read_rows(tmp_path / "methods_tiny.json") == rows
    assert len((tmp_path / "methods_tiny.json").read_text().splitlines()) == 4
    assert read_rows(tmp_path / "methods_other.json") == []


@pytest.mark.parametrize(
    "text", ['{"rows": [{"task"', '{"suite": "tiny"}', "[]", '{"rows": [{"task": "a"}]}', '{"rows": [3]}']
)
def test_a_damaged_file_of_rows_is_one_line(tmp_path, text):
    (tmp_path / "methods_tiny.json").write_text(text)
    with pytest.raises(UserError, match="holds no rows of this benchmark: restore it, or give results="):
        read_rows(tmp_path / "methods_tiny.json")


def test_rows_from_elsewhere_are_kept_if_they_had_these_options_and_this_base_policy(cell):
    here, away = cell(), cell("away")
    suite = Suite("tiny", "-", {}, {}, (away, here))
    before = gather(suite)
    (away.folder / RECORD).unlink()
    assert gather(suite, before) == before  # in the suite's order
    assert [row["method"] for row in gather(suite)] == ["two_stage"] * 2
    for other in ({"options": ["seed=1"]}, {"method": "unknown"}):
        assert len(gather(suite, [row | other for row in before])) == 2
    with pytest.raises(UserError, match=r"have near/away/seed0 of another base policy \(def, here abc\)"):
        gather(suite, [row | {"base": "def"} for row in before])


def test_rows_that_would_be_left_out_are_refused(cell, tmp_path):
    away, here = cell("away"), cell()
    suite, file = Suite("tiny", "-", {}, {}, (away, here)), tmp_path / "methods_tiny.json"
    rows = gather(suite)
    (away.folder / RECORD).unlink()
    check_kept(suite, rows, file)
    check_kept(suite, [row | {"options": ["a=1"]} for row in rows if row["method"] == "two_stage"], file)  # made anew
    for other in ({"options": ["a=1"]}, {"method": "gone"}):
        lost = [row | other for row in rows if row["method"] == "away"]
        with pytest.raises(UserError, match=r"2 rows of .*methods_tiny.json .*\(near/(away|gone)/seed0\): remove them"):
            check_kept(suite, lost, file)


def test_the_base_policy_that_is_there_counts_before_any_cell_is_done(cell):
    made = cell()
    rows = gather(suite := Suite("tiny", "-", {}, {}, (made,)))
    (made.folder / RECORD).unlink()
    made.shared.folder.mkdir(parents=True)
    (made.shared.folder / FACTS).write_text(json.dumps({"base": "def"}))
    with pytest.raises(UserError, match=r"another base policy \(abc, here def\)"):
        gather(suite, rows)


def test_the_critics_ranking_is_taken_along(cell):
    made = cell()
    (made.folder / "diagnosis").mkdir()
    ranking = {"q_action": {"pearson": 0.36}, "states": 60}
    (made.folder / "diagnosis" / "steerability.json").write_text(json.dumps({"critic_ranking": ranking}))
    assert cell_rows(made)[0]["ranking"] == ranking


def test_two_base_policies_in_one_task_and_seed_are_refused(cell):
    with pytest.raises(UserError, match="near/other/seed0 had another base policy"):
        gather(Suite("tiny", "-", {}, {}, (cell(), cell("other", base="def"))))


@pytest.mark.parametrize(("module", "name"), [(results, "gather"), (results, "check_kept"), (cells, "check_unchanged")])
def test_what_cannot_be_joined_kept_or_gone_on_with_is_refused_before_the_work(tmp_path, monkeypatch, module, name):
    def refuse(*_):
        raise UserError("another base policy")

    monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(cells, "run_cells", lambda *_: pytest.fail("it has begun"))
    with pytest.raises(SystemExit, match="another base policy"):
        main(["methods", "suite=smoke", f"output={tmp_path}"])
    assert list(tmp_path.iterdir()) == []


def test_jobs_0_runs_nothing_with_a_launcher_either(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launched, "launch_cells", lambda *_: pytest.fail("it has begun"))
    main(["methods", "suite=smoke", f"output={tmp_path}", "jobs=0", "hydra/launcher=joblib"])
    assert "Cells that were not run" in capsys.readouterr().out
