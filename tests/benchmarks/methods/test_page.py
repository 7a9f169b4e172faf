"""Every number of docs/results.md that comes from the harness comes from a committed result file."""

from __future__ import annotations

import re

import pytest

from benchmarks.methods.matrix import Suite, suite_names
from benchmarks.methods.page import BLOCK, PAGE, RESULTS, ROOT, written
from benchmarks.methods.results import results_path, write_results
from tests.benchmarks.methods.test_report import ROWS

README = ROOT / "README.md"
RATE = re.compile(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]")


def test_the_page_agrees_with_the_result_files():
    text = PAGE.read_text()
    assert written(text) == text, "python -m benchmarks.methods.page writes the tables again"


@pytest.mark.parametrize(("page", "heading"), [(PAGE, "## Methods on one frozen base"), (README, "## Results")])
def test_what_is_said_about_the_tables_is_in_them(page, heading):
    """Every rate with an interval, beside the tables themselves."""
    tables = "".join(block[0] for block in BLOCK.finditer(PAGE.read_text()))
    _, _, section = BLOCK.sub("", page.read_text()).partition(f"{heading}\n")
    said = RATE.findall(section.partition("\n## ")[0])
    assert len(said) > 10
    assert [rate for rate in said if rate not in tables] == []


def test_every_result_file_is_on_the_page_and_of_a_suite():
    shown = {block[2] for block in BLOCK.finditer(PAGE.read_text())}
    there = {name for name in suite_names() if results_path(RESULTS, name).exists()}
    assert there - {"smoke"} <= shown <= set(suite_names())


def test_a_block_is_made_of_the_rows(tmp_path):
    text = "# Results\n\n<!-- methods:tiny -->\nold\n<!-- /methods -->\n\nmore\n"
    assert "Not run yet: `python -m benchmarks methods suite=tiny`" in written(text, tmp_path)
    write_results(results_path(tmp_path, "tiny"), Suite("tiny", "-", {}, {}, ()), ROWS)
    made = written(text, tmp_path)
    assert "`near`, commit 1234567:" in made and "| good | 0 | 0.94 [0.88, 0.97] |" in made and "old" not in made
    assert made.startswith("# Results\n\n<!-- methods:tiny -->\n") and made.endswith("<!-- /methods -->\n\nmore\n")
    assert written(made, tmp_path) == made
