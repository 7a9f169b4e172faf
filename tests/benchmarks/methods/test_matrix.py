"""Suites: their order, equal env steps, and mistakes in one line before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import main
from benchmarks.methods import Words, missing_lines
from benchmarks.methods.matrix import HERE, read_suite, suite_names
from dsrl_torchrl.errors import UserError

WORDS = ["task=toy", "experiment=smoke", "stage1.rollout_env_steps=100", "stage2.warmup_env_steps=100"]
METHODS = {
    "base": {"what": "-", "source": "-", "family": "no learning", "steps": ["eval"]},
    "two_stage": {"what": "-", "source": "-", "family": "DSRL"},
    "online": {"what": "-", "source": "-", "family": "latent env", "overrides": ["algorithm=td3"]},
}
TASKS = {
    "near": {"overrides": [], "env_steps": 400},
    "far": {"overrides": ["task.env.max_episode_steps=50"], "env_steps": 380, "methods": ["base", "online"]},
}
SUITE = {"what": "-", "seeds": [0, 1], "overrides": WORDS, "tasks": TASKS}


@pytest.fixture
def folder(tmp_path: Path):
    """Where a suite named ``tiny`` is, with changes of it or of the methods."""

    def write(suite=(), methods=()) -> Path:
        (tmp_path / "suites").mkdir(exist_ok=True)
        (tmp_path / "suites" / "tiny.yaml").write_text(yaml.safe_dump(SUITE | dict(suite), sort_keys=False))
        (tmp_path / "methods.yaml").write_text(yaml.safe_dump(METHODS | dict(methods), sort_keys=False))
        return tmp_path

    return write


def test_cells_are_ordered_by_seed_then_task_then_method(folder):
    suite = read_suite("tiny", Path("out"), folder())
    assert [cell.name for cell in suite.cells][:5] == [
        "near/base/seed0",
        "near/two_stage/seed0",
        "near/online/seed0",
        "far/base/seed0",
        "far/online/seed0",
    ]
    assert all(cell.seed == 1 for cell in suite.cells[5:]) and len(suite.cells) == 10


def test_every_method_gets_the_same_env_steps(folder):
    """Rollouts are among them: who takes none gets as many more online."""
    suite = read_suite("tiny", Path("out"), folder({"overrides": [*WORDS, "stage2.checkpoint_env_steps=50"]}))
    cells = {cell.name: cell for cell in suite.cells}
    assert cells["near/two_stage/seed0"].rollouts and not cells["near/online/seed0"].rollouts
    assert "stage2.total_env_steps=300" in cells["near/two_stage/seed0"].options
    assert "stage2.total_env_steps=400" in cells["near/online/seed0"].options
    assert "stage2.total_env_steps=380" in cells["far/online/seed1"].options
    searching = {"two_stage": METHODS["two_stage"] | {"overrides": ["latent.centre_env_steps=50"]}}
    words = [*WORDS, "stage2.checkpoint_env_steps=50"]
    suite = read_suite("tiny", Path("out"), folder({"overrides": words}, searching))
    cells = {cell.name: cell for cell in suite.cells}
    assert "stage2.total_env_steps=250" in cells["near/two_stage/seed0"].options


def test_methods_of_a_task_and_seed_load_one_checkpoint(folder):
    suite = read_suite("tiny", Path("out"), folder())
    for cell in suite.cells:
        frozen = f"out/tiny/{cell.task}/frozen/seed{cell.seed}"
        assert f"base_policy.load.folder={frozen}/base" in cell.words
        assert f"task.demonstrations.path={frozen}/demos/trajectory.h5" in cell.words
        assert f"seed={cell.seed}" in cell.words and f"seed={cell.seed}" in cell.shared.words
        assert {"collector.num_workers=1", "collector.threads=1"} <= set(cell.words)
        assert cell.folder == Path("out/tiny") / cell.name
        assert {"output=out/tiny", f"name={cell.name}", "resume=true"} <= set(cell.words)


def test_selection(folder):
    suite = read_suite("tiny", Path("out"), folder())

    def names(patterns):
        return [cell.name for cell in suite.select(patterns)]

    assert len(names("*")) == 10
    assert names("near/o*/0") == names("near/online/seed0") == ["near/online/seed0"]
    assert names("far/base,near/base/1") == ["far/base/seed0", "near/base/seed1", "far/base/seed1"]
    for wrong in ("nowhere", "near/online/2", "near/base/0/0"):
        with pytest.raises(UserError, match=r"names no cell of suite=tiny.*near, far.*two_stage.*0, 1"):
            suite.select(wrong)


def test_what_was_not_run_is_a_line_a_task_and_a_command(folder):
    cells = read_suite("tiny", Path("out"), folder()).cells
    assert missing_lines(cells[4:], Words(suite="tiny", jobs=1)) == [
        "Cells that were not run (seeds): 6",
        "far: online (0, 1), base (1)",
        "near: base (1), two_stage (1), online (1)",
        "`python -m benchmarks methods suite=tiny jobs=1`",
    ]
    assert missing_lines([], Words()) == []


def test_every_shipped_method_runs_in_the_smoke_suite():
    suite = read_suite("smoke", Path("out"))
    assert list(suite.methods) == list(yaml.safe_load((HERE / "methods.yaml").read_text()))
    assert all(method.what and method.source for method in suite.methods.values())


@pytest.mark.parametrize("name", sorted(set(suite_names()) - {"smoke"}))
def test_shipped_suites_are_right(name, tmp_path):
    """All of their tasks with the default, and the names of their methods."""
    known = yaml.safe_load((HERE / "methods.yaml").read_text())
    file = yaml.safe_load((HERE / "suites" / f"{name}.yaml").read_text())
    for task in file["tasks"].values():
        assert set(task.get("methods", [])) <= known.keys()
        task["methods"] = ["dsrl_aw_mle"]
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / f"{name}.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    (tmp_path / "methods.yaml").write_text(yaml.safe_dump(known))
    assert len(read_suite(name, Path("out"), tmp_path).cells) == len(file["seeds"]) * len(file["tasks"])


@pytest.mark.parametrize(
    "suite, online, message",
    [
        ({"seed": [0]}, {}, r"suites/tiny.yaml: unknown option seed; the keys are what, seeds, "),
        ({"seeds": ["0"]}, {}, r"suites/tiny.yaml: seeds.0 should be a valid integer"),
        ({"tasks": {"near": {"overrides": []}}}, {}, r"suites/tiny.yaml: tasks.near: env_steps is missing"),
        (
            {"tasks": {"near": TASKS["near"] | {"methods": ["onlin"]}}},
            {},
            r"methods should be one of base, two_stage, online; got 'onlin'; did you mean online\?",
        ),
        ({}, {"word": []}, r"methods.yaml: online: unknown option word; the keys are "),
        ({}, {"family": "other"}, r"methods.yaml: online: family should be 'no learning'"),
        ({}, {"overrides": ["algorithm=td4"]}, r"near/online: algorithm needs a choice"),
        ({}, {"overrides": ["algorithm.lr=1"]}, r"near/online: unknown option"),
        ({"overrides": [*WORDS, "stage1.rollout_env_steps=400"]}, {}, r"latent.centre_env_steps \(400\) leave none"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(folder, suite, online, message):
    with pytest.raises(UserError, match=message) as refused:
        read_suite("tiny", Path("out"), folder(suite, {"online": METHODS["online"] | online}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "suite=<name> is needed: one of full, small, smoke"),
        (["suite=smal"], r"suite should be one of full, small, smoke; got 'smal'; did you mean small\?"),
        (["suit=small"], "expected suite=, jobs=, only=, output=, results= or hydra/launcher="),
        (["suite=smoke", "jobs=two"], "jobs should be the number of cells side by side, 0 to 256, got 'two'"),
        (["suite=smoke", "only=toys"], "names no cell of suite=smoke"),
        (["suite=smoke", f"output={__file__}"], f"output should be a folder, {__file__} is none"),
        (["suite=smoke", f"results={__file__}/a"], f"results should be a folder, {__file__}/a is none"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as refused:
        main(["methods", *words])
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []
