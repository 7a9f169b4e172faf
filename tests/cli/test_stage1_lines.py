from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from dsrl_torchrl.cli.steps.stage1 import say_stage1
from dsrl_torchrl.evaluation.rates import make_rate

FACTS = {
    "updates": 100,
    "wall_seconds": 10.0,
    "transitions": 500,
    "q_prior": -20.0,
    "q_policy": -18.0,
    "q_gain": 2.0,
    "q_gain_stderr": 0.1,
}


def checked(successes: int) -> dict:
    return {"success_once": asdict(make_rate([i < successes for i in range(40)]))}


@pytest.mark.parametrize("learned, base, worse", [(20, 18, False), (14, 22, False), (5, 25, True)])
def test_the_check_of_stage_1_is_beside_the_base_policy(learned, base, worse):
    """Its warning needs intervals that are apart: 40 episodes are few."""
    said: list[str] = []
    say_stage1(FACTS | {"check": checked(learned), "check_base": checked(base)}, Path("runs/a/stage1"), said.append)
    assert (
        said[2].startswith(f"check: success {learned / 40:.2f} [") and f"the base policy {base / 40:.2f} [" in said[2]
    )
    assert said[2].endswith("of 40 other resets")
    assert ("worse than the base" in said[-1]) == worse and len(said) == 3 + worse
