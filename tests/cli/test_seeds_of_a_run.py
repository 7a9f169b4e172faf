"""Every reset that a whole run makes, by what it is for."""

from __future__ import annotations

from collections import defaultdict

import pytest

from dsrl_torchrl import seeds
from dsrl_torchrl.cli.main import main
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.policies.probe import PROBE_NOISES

from .pipeline_run import SMOKE

#: Resets are the point, not what is learned between them.
FEW = [
    *SMOKE, "base_policy.training.steps=5", "stage1.updates=2",
    "latent.centre_env_steps=400", "stage2.utd=0.1", "diagnosis.resets=3",
    "diagnosis.repeats=2",
]  # fmt: skip
ASKED = {"demos": None, "stage1": seeds.CHECKS, "stage2": None, "eval": seeds.HELD_OUT, "diagnose": seeds.DIAGNOSIS}
#: Where every step that takes a base policy asks it for chunks; none is executed.
PROBES = seeds.first(seeds.DIAGNOSIS, PROBE_NOISES)


@pytest.mark.slow
@pytest.mark.parametrize("run_seed", [0, 3_999])
def test_no_step_resets_to_what_belongs_to_another(tmp_path, monkeypatch, run_seed):
    resets: dict[bool, list[int]] = defaultdict(list)
    episode_seeds = PointReachEnv._episode_seeds

    def spy(env, seed, env_idx):
        given = episode_seeds(env, seed, env_idx)
        resets[seed is not None] += given if env_idx is None else [given[i] for i in env_idx.tolist()]
        return given

    monkeypatch.setattr(PointReachEnv, "_episode_seeds", spy)
    for step, asked in ASKED.items():
        main([step, *FEW, f"output={tmp_path}", f"seed={run_seed}"])
        if step == "demos":
            asked = seeds.demonstration_seeds(run_seed)
        made = resets.pop(True, [])
        if asked is not seeds.DIAGNOSIS:
            made = [seed for seed in made if seed not in PROBES]
        assert bool(made) == bool(asked) and all(seed in (asked or ()) for seed in made), step
    assert len(resets[False]) > 20 and all(seed in seeds.TRAINING for seed in resets[False])
