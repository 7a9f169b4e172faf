"""Every algorithm, on states and on pixels."""

from __future__ import annotations

import pytest

from .cases import AGENTS, pixel_env, state_env


@pytest.fixture(params=AGENTS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture(params=["state", "pixels"])
def make_env(request):
    return state_env if request.param == "state" else pixel_env
