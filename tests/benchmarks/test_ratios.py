"""Turns and their statistics, by hand."""

from __future__ import annotations

import json

from benchmarks.ratios import Report, interleave, ratio, statistic


def test_sides_take_turns_and_every_second_repeat_is_reversed():
    turns = []
    times = interleave({name: lambda name=name: turns.append(name) for name in "abc"}, repeats=3, warmup=1)
    assert "".join(turns) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_ratio_is_of_neighbouring_turns():
    # A load that triples every time in the second repeat leaves the ratio alone.
    times = {"a": [2.0, 6.0, 3.0], "b": [1.0, 3.0, 1.0]}
    assert ratio(times, "a", "b") == {"median": 2.0, "low": 2.0, "high": 2.5, "repeats": 3}


def test_statistics_by_hand():
    assert statistic([5, 1, 3, 2, 4]) == {"median": 3, "low": 2, "high": 4, "repeats": 5}
    assert statistic([7.0]) == {"median": 7.0, "low": 7.0, "high": 7.0, "repeats": 1}


def test_a_report_is_written_as_json(tmp_path, capsys):
    report = Report("name", tmp_path)
    report.ratio("ours / theirs", statistic([1.0, 2.0]), goal="<= 2")
    report.value("updates", statistic([10.0]), "1/s")
    report.write()
    written = json.loads((tmp_path / "name.json").read_text())
    assert written["ratios"]["ours / theirs"] == {"median": 1.5, "low": 1.25, "high": 1.75, "repeats": 2}
    assert written["goals"] == {"ours / theirs": "<= 2"}
    assert written["values"]["updates [1/s]"]["median"] == 10.0
    assert written["machine"]["threads"] >= 1 and written["command"] and written["date"]
    assert "ours / theirs" in capsys.readouterr().out
