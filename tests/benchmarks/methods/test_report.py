"""The report: its tables say what the rows say, and the page needs nothing beside it."""

from __future__ import annotations

import pytest

from benchmarks.methods.report import beats_table, report_parts, success_table, write_report

VERSIONS = {"torch": "2.13.0", "sapien": None}


def row(method: str, policy: str, once: int, seed: int = 0, task: str = "near", **more) -> dict:
    curve = [
        {"env_steps": 1000 * i, "seconds": 10.0 * i, "success_once": 0.2 * i, "success_at_end": 0.1} for i in range(4)
    ]
    reached = {"50%": 3000, "75%": None, "90%": None}
    cost = {"env_steps": 5000, "cpu_seconds": 90.0, "dip_env_steps": None}
    origin = {"base": "abcdef", "commit": "1234567", "options": [], "versions": VERSIONS, "ranking": None}
    counts = {"episodes": 100, "success_once": once, "success_at_end": once // 2}
    where = {"task": task, "method": method, "seed": seed, "policy": policy}
    return where | counts | cost | origin | {"curve": curve, "reached": reached} | more


def both(method: str, once: int, **more) -> list[dict]:
    return [row(method, policy, once, **more) for policy in ("sampled", "mode")]


ROWS = [*both("good", 94), *both("bad", 40), *both("like_good", 90)]


def test_a_line_for_each_method():
    good = success_table(ROWS).rows[0]
    assert good[:3] == ["good", "0", "0.94 [0.88, 0.97]"] and good[6:] == ["5.0k", "3.0k", "–", "–", "–", "–", "1.5"]
    seeds = success_table([*both("good", 90), *both("good", 94, seed=1), *both("good", 98, seed=2)]).rows
    assert len(seeds) == 1 and seeds[0][1] == "0, 1, 2" and seeds[0][2] == "0.94 [0.90, 0.98]"
    assert seeds[0][7] == "3.0k, 3.0k, 3.0k"


def test_the_first_to_a_share_says_whose():
    reached = {"50%": 1000, "75%": 2000, "90%": 3000}
    table = success_table(
        [row("x", "sampled", 90, reached=reached | {"90%": 4000}), row("x", "mode", 90, reached=reached)]
    )
    firsts = {name: cell for name, cell in zip(table.head, table.rows[0], strict=True) if name.startswith("to ")}
    assert firsts == {"to 50% mode": "1.0k", "to 75% mode": "2.0k", "to 90% mode": "3.0k", "to 90% sampled": "4.0k"}


def test_who_beats_whom_says_where_intervals_overlap():
    table = beats_table(ROWS)
    assert table.head == ["", "good", "bad", "like_good"]
    assert table.rows[0] == ["good", "", "▲▲▲▲", "≈≈≈≈"] and table.rows[1] == ["bad", "▽▽▽▽", "", "▽▽▽▽"]


def test_who_beats_whom_is_asked_on_the_seeds_of_both():
    """Seed 1 has a base policy that every method does well on: by all of its seeds ``good`` is apart from ``few``."""
    hard, easy = both("good", 50), [*both("good", 98, seed=1), *both("few", 96, seed=1), *both("none", 9, seed=2)]
    marks = dict(zip(("good", "few", "none"), beats_table([*hard, *easy]).rows, strict=True))
    assert marks["good"] == ["good", "", "≈≈≈≈", ""] and marks["few"] == ["few", "≈≈≈≈", "", ""]


def test_page_and_figures(tmp_path):
    rows = [*ROWS, *both("good", 80, task="far")]
    ranking = {"q_action": {"pearson": {"value": 0.36, "low": 0.2}, "share": {"value": 0.1}}, "q_noise": None}
    rows[0]["ranking"] = rows[1]["ranking"] = ranking
    missing = ["Cells that were not run (seeds): 1", "far: bad (0)", "`python -m benchmarks methods suite=tiny`"]
    write_report(tmp_path, "tiny", "a <try>", rows, missing)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "a &lt;try&gt;" in page and page.count("data:image/png;base64,") == 6 and "http" not in page
    for png in ("success_near.png", "curves_near_mode.png", "curves_near_sampled.png"):
        assert f"![{png}]({png})" in text and (tmp_path / png).stat().st_size > 5_000
    assert "| good | 0.36 | 0.10 | – | – | – | – |" in text and "| Q^A correlation |" in text
    assert "`python -m benchmarks methods suite=tiny`" in text and "<code>python -m benchmarks" in page
    assert "## All tasks" in text and "| good | 0.87" in text
    assert "torch 2.13.0" in text and "sapien" not in text


def test_without_any_rows_it_says_what_is_missing():
    assert report_parts("tiny", "-", [], ["far: bad (0)"])[-1] == "far: bad (0)"


@pytest.mark.parametrize("curve", [[], [{"env_steps": 5, "seconds": 1.0, "success_once": 0.5, "success_at_end": 0.5}]])
def test_short_curves_are_drawn_or_left_out(tmp_path, curve):
    rows = [r | {"curve": curve} for r in ROWS]
    write_report(tmp_path, "tiny", "-", rows, [])
    assert (tmp_path / "curves_near_mode.png").exists() == bool(curve)
