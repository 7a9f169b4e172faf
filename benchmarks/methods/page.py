"""The tables of docs/results.md that come from the harness: ``python -m benchmarks.methods.page`` writes them again.

A table stands between ``<!-- methods:<suite> -->`` and ``<!-- /methods -->``, and a test makes it anew from the
committed ``benchmarks/results/methods_<suite>.json``.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.methods.report import success_table
from benchmarks.methods.results import read_rows, results_path

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "results.md", ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- methods:(\w+) -->\n).*?(<!-- /methods -->)", re.DOTALL)


def written(text: str, results: Path = RESULTS) -> str:
    """``text`` with its blocks made anew."""
    return BLOCK.sub(lambda block: f"{block[1]}{tables(block[2], results)}\n{block[3]}", text)


def tables(suite: str, results: Path = RESULTS) -> str:
    """A table a task; a line where the suite has no results yet."""
    rows = read_rows(results_path(results, suite))
    if not rows:
        return f"\nNot run yet: `python -m benchmarks methods suite={suite}`.\n"
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        commits = ", ".join(sorted({commit for row in mine for commit in row["commit"].split(", ")}))
        parts.append(f"`{task}`, commit {commits}:\n\n{success_table(mine).markdown()}\n")
    return "\n" + "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
