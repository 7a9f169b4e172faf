"""Why critics rank a state's noises badly: which change to data, learner or judge of Q^A helps, of a policy that stays.

    dsrl stage1 experiment=demo stage1.rollout_env_steps=30000 name=pick
    python -m benchmarks critic_targets run=runs/pick

The mode of stage 1's actor is the fixed policy. Its true returns after 10 prior noises from each of 96 states, in a
simulator that restores states, are what critics are measured by; no reset is held out. Results are added to
``benchmarks/results/critic_targets.json`` as each variant ends, and drawn beside it; collected episodes stay in
``<run>/critic_targets``. ``--variants a,b`` chooses some. It ends with the table of docs/why-critics-rank.md, which
says what came out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.critic_experiment import COLLECTED, Experiment, Sizes, Variant, run_config
from benchmarks.critic_figure import draw, line, table
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.files import write_json
from dsrl_torchrl.versions import installed_versions

RESULTS = Path(__file__).parent / "results" / "critic_targets.json"
OWN = "own"
#: In the order in which they tell most.
VARIANTS = {
    "mode": Variant("the same data, next noise the mode", model=True),
    "tails": Variant("and the policy's own episodes after one prior chunk", ("tails",), model=True),
    "branches": Variant("and as many env steps in 4 branches from a state", ("branches",)),
    "all episodes": Variant("and five times as many env steps of its own episodes", tuple(COLLECTED), model=True),
    "regression": Variant("the 4 branches' returns, centred within a state, beside TD", ("branches",), regression=True),
    "sample": Variant("the same data, next noise a sample", sample=True),
    "weight decay": Variant("weight decay 0.01", weight_decay=1e-2),
    "twice the updates": Variant("twice the updates", updates=2),
    "wide": Variant("critics of 3×256", networks={"num_cells": (256, 256, 256)}),
    "ten critics": Variant("ten critics", networks={"num_critics": 10}),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="run=<folder>", help="of a finished stage 1")
    parser.add_argument("--variants", default=",".join([OWN, *VARIANTS]), help="comma-separated names")
    parser.add_argument("--states", type=int, default=96, help="that the truth is measured from")
    parser.add_argument("--noises", type=int, default=10, help="of each of them")
    parser.add_argument("--updates", type=int, default=3_200)
    parser.add_argument("--env-steps", type=int, default=30_000, help="of the policy's own episodes, 1, 1 and 3 times")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file; its figure lies beside it")


def main(arguments: argparse.Namespace) -> None:
    names = arguments.variants.split(",")
    unknown = [name for name in names if name not in (OWN, *VARIANTS)]
    if unknown:
        raise UserError(f"variants are {', '.join([OWN, *VARIANTS])}, got {', '.join(unknown)}")
    if arguments.noises < 2:
        raise UserError(f"a ranking is one of at least 2 noises, got {arguments.noises}")
    from benchmarks.methods.cells import commit  # not at the top: no other benchmark needs it

    sizes = Sizes(arguments.states, arguments.noises, arguments.updates, arguments.env_steps)
    with Run(run_config(arguments.run), say=_say) as run:
        experiment = Experiment(run, sizes)
        try:
            _check_same(arguments.results, experiment.measured())
            about = experiment.about() | {"command": f"python -m benchmarks critic_targets {arguments.run}"}
            for name in names:
                outcome = experiment.own() if name == OWN else experiment.fitted(VARIANTS[name])
                found = _results(arguments.results) | {name: outcome | {"commit": commit()}}
                variants = {each: found[each] for each in (OWN, *VARIANTS) if each in found}
                write_json(arguments.results, about | {"versions": installed_versions(), "variants": variants})
                _say(line(name, outcome))
        finally:
            experiment.env.close()
    found = _results(arguments.results)
    draw(found, arguments.results.with_suffix(".png"))
    _say(table(found))


def _check_same(path: Path, measured: dict[str, Any]) -> None:
    found = json.loads(path.read_text()) if path.exists() else measured
    other = {key: found[key] for key, value in measured.items() if found[key] != value}
    if other:
        raise UserError(
            f"{path} has the variants of another fixed policy or truth ({other}, here "
            f"{ {key: measured[key] for key in other} }): choose another file by --results"
        )


def _results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["variants"] if path.exists() else {}


def _say(line: str) -> None:
    print(line, flush=True)
