"""The model of rounds against what can be computed by hand."""

from __future__ import annotations

import pytest

from benchmarks.limits import HORIZON, PIPE_SECONDS, RAY_SECONDS, Costs, Machines, simulate

COSTS = Costs(step_fixed=3e-3, step_each=1e-3, act_fixed=2e-3, act_each=1e-5, update=1e-2, weights=1_000_000)


def test_a_round_is_as_long_as_its_longest_part():
    system = Machines("", workers=2, envs=8)
    slow = simulate(COSTS, system, utd=1.0)
    overhead = 2e-3 + 16e-5 + 2 * PIPE_SECONDS
    assert slow["limit"] == "updating"
    assert slow["env_steps_per_second"] == pytest.approx(16 * HORIZON / (overhead + 16 * 1e-2))
    fast = simulate(COSTS, system, utd=0.1)
    collecting = HORIZON * (3e-3 + 8e-3)
    assert fast["limit"] == "collecting"
    assert fast["env_steps_per_second"] == pytest.approx(16 * HORIZON / (overhead + collecting))
    assert fast["workers_busy"] == pytest.approx(collecting / (overhead + collecting))


def test_ray_decodes_in_the_workers_and_sends_weights_to_each():
    system = Machines("", workers=64, envs=8, nodes=4)
    found = simulate(COSTS, system, utd=0.0)
    seconds = HORIZON * 11e-3 + 2e-3 + 8e-5 + RAY_SECONDS + 64e-3
    assert found["env_steps_per_second"] == pytest.approx(512 * HORIZON / seconds)


def test_the_slowest_worker_ends_the_round():
    system = Machines("", workers=32, envs=8)
    even, uneven = (simulate(COSTS, system, 0.0, spread=spread, rounds=500) for spread in (0.0, 0.3))
    assert uneven["env_steps_per_second"] < 0.8 * even["env_steps_per_second"]
    assert uneven["workers_busy"] < 0.7
