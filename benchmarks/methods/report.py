"""``report.md`` and one ``report.html`` that needs nothing beside it: tables and figures of a suite's rows."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.methods.figures import MEASURES, draw_curves, draw_success
from benchmarks.methods.results import MODE, REACHED, SAMPLED, Row
from benchmarks.methods.statistics import compare, success
from dsrl_torchrl.evaluation.rates import Rate
from dsrl_torchrl.files import write_atomically

#: Policy and measure, as the tables order them.
COLUMNS = [(policy, measure) for measure in MEASURES for policy in (SAMPLED, MODE)]
#: Whose learning curve first reaches a share: the mode, and at the last one the sampled policy, which narrows late.
FIRSTS = [*((share, MODE) for share in REACHED), (REACHED[-1], SAMPLED)]
#: The critics' ranking (``dsrl diagnose``): correlation with the true returns of one state's noises, and the share of
#: the best one's gain that choosing by the critic has.
RANKING = {
    "Q^A correlation": "q_action.pearson.value",
    "Q^A share of the gain": "q_action.share.value",
    "Q^W correlation": "q_noise.pearson.value",
    "Q^W share of the gain": "q_noise.share.value",
    "gain of the best noise": "best_gain.value",
    "std of returns": "return_std",
}
MARKS = {1: "▲", 0: "≈", -1: "▽"}
STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}"
    "th,td{padding:.2em .6em;border-bottom:1px solid #ddd;text-align:left;white-space:nowrap}"
    "th{border-bottom:2px solid #888}img{max-width:100%}code{background:#f3f3f3;padding:0 .2em}"
)

Rates = dict[str, dict[tuple[str, str], Rate]]


@dataclass(frozen=True)
class Table:
    """A head and rows of text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def html(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        return f"<table><thead>{line(self.head, 'th')}</thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Figure:
    """A PNG and its file's name."""

    name: str
    png: bytes


Part = str | Table | Figure  #: a text is a paragraph, a heading that begins with ``#``, or a command in backticks


def write_report(folder: Path, suite: str, what: str, rows: Sequence[Row], missing: Sequence[str]) -> list[Path]:
    """Writes both; the figures of ``report.md`` beside it.

    Args:
        folder: of the report.
        suite, what: its name and its line.
        rows: of :mod:`benchmarks.methods.results`.
        missing: what was not run, a line each.
    """
    parts = report_parts(suite, what, rows, missing)
    written = [folder / "report.md", folder / "report.html"]
    for part in parts:
        if isinstance(part, Figure):
            write_atomically(folder / part.name, part.png)
    write_atomically(written[0], "\n\n".join(map(_markdown, parts)).encode() + b"\n")
    body = "\n".join(map(_html, parts))
    page = f"<!doctype html><meta charset='utf-8'><title>{html.escape(suite)}</title><style>{STYLE}</style>\n{body}\n"
    write_atomically(written[1], page.encode())
    return written


def report_parts(suite: str, what: str, rows: Sequence[Row], missing: Sequence[str]) -> list[Part]:
    """The report from top to bottom."""
    parts: list[Part] = [f"# {suite}: {what}", intervals_line(rows)]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for task in tasks:
        mine = [row for row in rows if row["task"] == task]
        rates = rates_of(mine)
        parts += [f"## {task}", success_table(mine), Figure(f"success_{task}.png", draw_success(task, rates))]
        for policy in (MODE, SAMPLED):
            png = draw_curves(task, mine, policy)
            parts += [Figure(f"curves_{task}_{policy}.png", png)] if png is not None else []
        ranking = ranking_table(mine)
        parts += ["### How the critics rank the noises of a state", ranking] if ranking.rows else []
        parts += [
            "### Who beats whom",
            "On the seeds that both have.",
            f"{MARKS[1]}: the row's method is better and the intervals are apart; {MARKS[-1]}: worse; {MARKS[0]}: they "
            "overlap, and the difference may be chance. Four marks: " + ", ".join(f"{m} {p}" for p, m in COLUMNS) + ".",
            beats_table(mine),
        ]
    everywhere = _everywhere(rows, tasks)
    if len(tasks) > 1 and everywhere.rows:
        parts += ["## All tasks", "Methods that ran on every task.", everywhere]
    if missing:
        parts += ["## Not run", *missing]
    parts += ["## Where it comes from", origin_table(rows)] if rows else []
    return parts


def intervals_line(rows: Sequence[Row]) -> str:
    """What the numbers are."""
    episodes = " or ".join(map(str, sorted({row["episodes"] for row in rows}))) or "no"
    return (
        f"Success over {episodes} held-out resets a run, the same for every policy; 95 % intervals: Wilson's of one "
        "run; of several, the interquartile mean of the runs with a stratified bootstrap over seeds, widened to "
        "Wilson's of all episodes: what more runs from these starts would give. Env steps are a method's own, its "
        "offline rollouts and search included; learning curves are evaluations during training, on resets of their "
        "own."
    )


def rates_of(rows: Sequence[Row]) -> Rates:
    """Of one task's rows: method -> ``(policy, measure)`` -> success."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return {
        method: {
            (policy, measure): success([[(row[measure], row["episodes"]) for row in rows if _is(row, method, policy)]])
            for policy, measure in COLUMNS
        }
        for method in methods
    }


def success_table(rows: Sequence[Row]) -> Table:
    """Of one task: what each method reached, at what cost."""
    head = ["method", "seeds", *(f"{measure} {policy}" for policy, measure in COLUMNS), "env steps"]
    head += [f"to {share:.0%} {policy}" for share, policy in FIRSTS] + ["longest dip", "CPU min"]
    lines = []
    for method, rates in rates_of(rows).items():
        runs = {policy: [row for row in rows if _is(row, method, policy)] for policy in (SAMPLED, MODE)}
        mine = runs[MODE]
        lines.append(
            [
                method,
                ", ".join(str(row["seed"]) for row in mine),
                *(str(rates[column]) for column in COLUMNS),
                _thousands([row["env_steps"] for row in mine]),
                *(_thousands([row["reached"][f"{share:.0%}"] for row in runs[policy]]) for share, policy in FIRSTS),
                _thousands([row["dip_env_steps"] for row in mine]),
                f"{sum(row['cpu_seconds'] for row in mine) / len(mine) / 60:.1f}",
            ]
        )
    return Table(head, lines)


def beats_table(rows: Sequence[Row]) -> Table:
    """Of one task, each method against each other, on the seeds of both: four marks, of :data:`COLUMNS`."""
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row["method"], set()).add(row["seed"])

    def marks(first: str, second: str) -> str:
        both = seeds[first] & seeds[second]
        if first == second or not both:
            return ""
        rates = rates_of([row for row in rows if row["seed"] in both and row["method"] in (first, second)])
        return "".join(MARKS[compare(rates[first][column], rates[second][column])] for column in COLUMNS)

    return Table(["", *seeds], [[first, *(marks(first, second) for second in seeds)] for first in seeds])


def ranking_table(rows: Sequence[Row]) -> Table:
    """What ``dsrl diagnose`` measured of the learned critics, mean over seeds; empty where it did not."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        if row["policy"] == MODE and row["ranking"]:
            found.setdefault(row["method"], []).append(row["ranking"])
    lines = []
    for method, runs in found.items():
        cells = [[value for run in runs if (value := _number(run, path)) is not None] for path in RANKING.values()]
        lines.append([method, *(f"{sum(cell) / len(cell):.2f}" if cell else "–" for cell in cells)])
    return Table(["method", *RANKING], lines)


def origin_table(rows: Sequence[Row]) -> Table:
    """Commits, base policies and versions."""
    seen = {}
    for row in rows:
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items() if version)
        seen[row["task"], str(row["seed"]), row["base"][:12], str(row["commit"]), versions] = None
    return Table(["task", "seed", "base policy", "commit", "versions"], list(seen))


def _everywhere(rows: Sequence[Row], tasks: Sequence[str]) -> Table:
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [[row for row in rows if row["task"] == task and row["method"] == method] for task in tasks]
        if not all(mine):
            continue
        rates = [
            success([[(row[m], row["episodes"]) for row in task if row["policy"] == p] for task in mine])
            for p, m in COLUMNS
        ]
        lines.append([method, *map(str, rates)])
    return Table(["method", *(f"{measure} {policy}" for policy, measure in COLUMNS)], lines)


def _is(row: Row, method: str, policy: str) -> bool:
    return bool(row["method"] == method and row["policy"] == policy)


def _thousands(values: Sequence[float | None]) -> str:
    """Of each seed; a dash for what was not reached or does not apply."""
    return ", ".join("–" if value is None else f"{value / 1000:.1f}k" for value in values)


def _number(ranking: dict, path: str) -> float | None:
    found: Any = ranking
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _markdown(part: Part) -> str:
    if isinstance(part, Table):
        return part.markdown()
    return f"![{part.name}]({part.name})" if isinstance(part, Figure) else part


def _html(part: Part) -> str:
    if isinstance(part, Table):
        return part.html()
    if isinstance(part, Figure):
        return f"<img alt='{part.name}' src='data:image/png;base64,{base64.b64encode(part.png).decode()}'>"
    if part.startswith("`"):
        return f"<p><code>{html.escape(part.strip('`'))}</code></p>"
    level = len(part) - len(part.lstrip("#"))
    text = html.escape(part.lstrip("# "))
    return f"<h{level}>{text}</h{level}>" if level else f"<p>{text}</p>"
