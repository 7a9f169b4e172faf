"""The benchmark of the card, on a machine without one."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.card import describe, find_device
from benchmarks.gpu import FASTER_THAN_EAGER, MODES, NEAR_THE_FLOOR, Bench
from benchmarks.setting import Setting
from tests.training.recorded_graph import pretend_cuda

CASES = ["NA N=2 width=8", "SAC N=2 width=8", "decode flow batch=4", "decode diffusion batch=4"]


def ratios_of(tmp_path, *arguments):
    main(["gpu", "--smoke", "--out", str(tmp_path), *arguments])
    return json.loads((tmp_path / "gpu.json").read_text())


def test_smoke(tmp_path):
    written = ratios_of(tmp_path)
    expected = {f"{case}: eager / floor" for case in CASES} | {f"{case}: eager / bare" for case in CASES[:2]}
    assert written["ratios"].keys() == expected | {"batch: replay on the CPU / here"}
    for found in written["ratios"].values():
        assert 0 < found["low"] <= found["median"] <= found["high"] and found["repeats"] == 2
    assert written["card"] == describe(torch.device("cpu"))
    # What pip knows of a build from PyPI has no "+cu130".
    assert torch.__version__.startswith(written["card"]["torch"].partition("+")[0])
    assert (tmp_path / "gpu.png").stat().st_size < 200_000


def test_every_mode_is_a_side_and_graphs_need_a_card(tmp_path, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda step, **_: compiled.append(step) or step)
    ratios = ratios_of(tmp_path, "--modes", "eager", "compile", "graphs")["ratios"]
    assert "no CUDA graphs on a CPU" in capsys.readouterr().out
    assert len(compiled) == len(CASES)
    kinds = {name.partition(": ")[2] for name in ratios if name.startswith(CASES[0])}
    assert kinds == {"eager / compile", "eager / bare", "compile / bare", "eager / floor", "compile / floor"}


def test_what_a_card_captures_is_timed(tmp_path, monkeypatch):
    """By a recorder in the place of CUDA graphs."""
    graphs = pretend_cuda(monkeypatch)
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    arguments = Namespace(modes=["eager"], out=tmp_path, transitions=64, seconds=0.001, repeats=1)
    bench = Bench(arguments, torch.device("cpu"))
    bench.modes = [*MODES.values()]
    setting = Setting(num_critics=10, width=256, depth=1, batch_size=4, base_width=8)
    bench.update(setting, "dsrl_sac")
    bench.decode(setting, "flow")
    assert len(graphs) == 2 and all(graph.replays for graph in graphs)
    for case in ("SAC N=10 width=256", "decode flow batch=4"):
        assert f"{case}: eager / compile + graphs" in bench.report.ratios
    assert bench.report.goals == {"SAC N=10 width=256: eager / compile + graphs": ">= 5"}


def test_goals():
    """N = 10 at width 256; width 2048."""
    assert FASTER_THAN_EAGER == {(10, 256): ">= 5"}
    assert NEAR_THE_FLOOR == {(2, 2048): "<= 1.3", (10, 2048): "<= 1.3"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_card_it_refuses_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"no device cuda here .* try it out by --device cpu") as refused:
        main(["gpu", "--out", str(tmp_path)])
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_card_is_chosen_by_its_index(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    assert [find_device(name) for name in ("cuda", "cuda:1")] == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert chosen == [0, 1]


@pytest.mark.parametrize("name", ["meta", "gpu"])
def test_other_devices_are_refused(tmp_path, name):
    with pytest.raises(SystemExit, match=f"should be cuda, cuda:<index> or cpu, got {name}"):
        main(["gpu", "--device", name, "--out", str(tmp_path)])


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_smoke_on_a_card(tmp_path):
    written = ratios_of(tmp_path, "--device", "cuda", "--modes", "eager", "compile", "graphs")
    assert f"{CASES[0]}: compile + graphs / floor" in written["ratios"]
    assert written["card"]["name"] and written["card"]["driver"]
