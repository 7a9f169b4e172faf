"""Every benchmark runs with tiny sizes, and leaves its ratios and its chart behind."""

from __future__ import annotations

import json

import pytest

from benchmarks.__main__ import SUITE, main
from benchmarks.sb3 import AVAILABLE
from dsrl_torchrl.errors import UserError

MARKS = {
    "simulator": pytest.mark.simulator,
    "suites": pytest.mark.simulator,
    "latent_env": pytest.mark.simulator,
    "end_to_end": pytest.mark.slow,
    "scaling": pytest.mark.slow,
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in SUITE])
def test_smoke(name, tmp_path):
    main([name, "--smoke", "--out", str(tmp_path)])
    ratios = json.loads((tmp_path / f"{name}.json").read_text())["ratios"]
    assert ratios
    for found in ratios.values():
        assert found["low"] <= found["median"] <= found["high"] and found["repeats"] >= 1
    assert (tmp_path / f"{name}.png").stat().st_size < 200_000
    if name == "update":
        assert any("SB3" in ratio for ratio in ratios) == AVAILABLE


def test_without_stable_baselines3_the_update_runs_without_its_column(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.update.AVAILABLE", False)
    main(["update", "--smoke", "--out", str(tmp_path)])
    assert "pip install" in capsys.readouterr().out
    ratios = json.loads((tmp_path / "update.json").read_text())["ratios"]
    assert ratios and not any("SB3" in name for name in ratios)


def test_all_names_every_benchmark_but_the_long_one(monkeypatch):
    ran = []
    for name, module in SUITE.items():
        monkeypatch.setattr(module, "main", lambda arguments, name=name: ran.append(name))
    main(["all", "--smoke"])
    assert ran == [
        "update",
        "pixels",
        "na_cost",
        "simulator",
        "suites",
        "latent_env",
        "end_to_end",
        "scaling",
        "limits",
        "policy_server",
    ]


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["updates"])
    assert "update" in capsys.readouterr().err


@pytest.mark.parametrize("cell", ["2xx", "2", "x128", "0x128", "2x1.5"])
def test_wrong_sizes_are_refused(capsys, cell):
    with pytest.raises(SystemExit):
        main(["update", "--cells", cell])
    assert f"should be two whole numbers, such as 2x128, got '{cell}'" in capsys.readouterr().err


def test_a_mistake_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="benchmarks: error: algorithm needs a choice") as refused:
        main(["end_to_end", "--smoke", "--algorithms", "nope", "--out", str(tmp_path)])
    assert "\n" not in str(refused.value)


def test_a_run_of_end_to_end_settles_its_workers(monkeypatch, tmp_path):
    """The tiny run names their number."""
    settled = []

    def note(config, policy):
        settled.append(config.collector.num_workers)
        raise UserError("seen")

    monkeypatch.setattr("benchmarks.end_to_end.make_latent_env", note)
    with pytest.raises(SystemExit, match="seen"):
        main(["end_to_end", "--smoke", "--overrides", "task=toy", "--out", str(tmp_path)])
    assert isinstance(settled[0], int)
