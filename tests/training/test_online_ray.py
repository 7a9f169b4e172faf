"""Stage 2 on Ray workers, in small; that their batches depend on seed and weights alone is tested with them."""

from __future__ import annotations

import pytest

from dsrl_torchrl.collect.ray_workers import RayWorkers
from tests.training.toy import DSRLNA, make_agent, make_env, run_online


@pytest.mark.slow
def test_utd_is_exact_on_ray(tmp_path):
    pytest.importorskip("ray")
    options = {"total_env_steps": 300, "warmup_env_steps": 100, "checkpoint_env_steps": 100, "offline_fraction": 0.0}
    with RayWorkers(make_env, 2) as workers:
        result, rows = run_online(make_agent(DSRLNA), tmp_path, workers=workers, warm_up_by_prior=False, **options)
    assert result.updates == result.macro_steps > 100
    assert rows[-1][1]["replay_buffer/size"] == result.macro_steps
