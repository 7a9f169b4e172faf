"""Every reset that a whole run makes, by what it is for."""

from __future__ import annotations

from collections import defaultdict

import pytest

from dsrl_torchrl import seeds
from dsrl_torchrl.cli.main import main
from dsrl_torchrl.envs.toy import PointReachEnv

from .pipeline_run import SMOKE

ASKED = {"demos": None, "stage1": seeds.CHECKS, "stage2": None, "eval": seeds.HELD_OUT, "diagnose": seeds.DIAGNOSIS}


@pytest.mark.slow
@pytest.mark.parametrize("run_seed", [0, 3_999])
def test_no_step_resets_to_what_belongs_to_another(tmp_path, monkeypatch, run_seed):
    resets: dict[bool, list[int]] = defaultdict(list)
    start = PointReachEnv._start

    def spy(env, given, env_idx, asked):
        resets[asked] += given if env_idx is None else [given[i] for i in env_idx.tolist()]
        return start(env, given, env_idx, asked)

    monkeypatch.setattr(PointReachEnv, "_start", spy)
    for step, asked in ASKED.items():
        main([step, *SMOKE, f"output={tmp_path}", f"seed={run_seed}"])
        if step == "demos":
            asked = seeds.demonstration_seeds(run_seed)
        made = resets.pop(True, [])
        assert bool(made) == bool(asked) and all(seed in (asked or ()) for seed in made), step
    assert len(resets[False]) > 20 and all(seed in seeds.TRAINING for seed in resets[False])
