"""Where the critics' ranking cannot be measured, a line says why."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dsrl_torchrl.cli.steps import diagnose
from tests.steerability.bases import coin_env


@pytest.mark.parametrize(("gamma", "why"), [(1.0, "without a discount"), (0.9, "has no get_state() and set_state()")])
def test_it_is_left_out(monkeypatch, gamma, why):
    env = coin_env()
    monkeypatch.setattr(diagnose, "make_side_env", lambda *_: env)
    learned = SimpleNamespace(config=SimpleNamespace(gamma=gamma))
    line = diagnose.rank_critics(learned, None, None)
    assert line.startswith("the critics' ranking is not measured: ") and why in line
