"""The seed map: what is trained on is never evaluated on, by the resets that envs really make."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from torchrl.envs import ParallelEnv, SerialEnv

from dsrl_torchrl import seeds
from dsrl_torchrl.collect.episodes import reset_to_seeds
from dsrl_torchrl.collect.rollouts import collect_rollouts
from dsrl_torchrl.envs.toy import PointReachEnv, make_toy_demonstrations
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from tests.envs.fake_maniskill import FakeManiSkill
from tests.processes import READY
from tests.training.toy import make_env

KINDS = {
    "demonstrations": seeds.DEMONSTRATIONS,
    "training": seeds.TRAINING,
    "checks": seeds.CHECKS,
    "diagnosis": seeds.DIAGNOSIS,
    "held out": seeds.HELD_OUT,
    "progress": seeds.PROGRESS,
}
GENERATOR = np.random.default_rng(0)
RUNS = [seeds.RUN_SEEDS[0], seeds.RUN_SEEDS[-1], *GENERATOR.integers(0, len(seeds.RUN_SEEDS), 30).tolist()]


@pytest.fixture
def started(monkeypatch):
    """The seeds of all episodes that toy envs start."""
    made: list[int] = []
    start = PointReachEnv._start

    def spy(self, given, env_idx, asked):
        made.extend(given if env_idx is None else [given[i] for i in env_idx.tolist()])
        return start(self, given, env_idx, asked)

    monkeypatch.setattr(PointReachEnv, "_start", spy)
    return made


def test_no_two_kinds_share_a_reset():
    for (_, a), (_, b) in itertools.combinations(KINDS.items(), 2):
        assert a.stop <= b.start or b.stop <= a.start
    assert max(kind.stop for kind in KINDS.values()) < 2**31  # ManiSkill's bound
    own = [seeds.demonstration_seeds(run) for run in sorted(set(RUNS))]
    assert all(a.stop <= b.start for a, b in itertools.pairwise(own))
    assert all(r.start in seeds.DEMONSTRATIONS and r[-1] in seeds.DEMONSTRATIONS for r in own)


def test_demonstrations_start_in_their_runs_own_range(started, tmp_path):
    for run in RUNS[:6]:
        started.clear()
        make_toy_demonstrations(tmp_path / f"{run}.h5", 2, seed=run, progress=False)
        assert started and set(started) <= set(seeds.demonstration_seeds(run))


@pytest.mark.parametrize("make", [lambda: PointReachEnv(num_envs=3), lambda: SerialEnv(2, PointReachEnv)])
def test_unseeded_resets_are_training_ones_whatever_the_stream(started, make):
    env = make()
    streams = [seeds.segment_stream(run, segment) for run in RUNS for segment in (0, 7, 2_000)]
    for stream in [*streams, *(seeds.ROLLOUT_STREAM + run for run in RUNS), None]:
        env.set_seed(stream)
        for _ in range(3):
            env.reset()
    assert len(started) > 500 and all(seed in seeds.TRAINING for seed in started)


def test_segments_rollouts_searches_and_workers_do_not_repeat_each_other(started):
    env = SerialEnv(2, PointReachEnv)
    streams = [seeds.segment_stream(run, segment) for run in (0, 1, 3_999) for segment in (0, 1, 999, 1_000, 1_001)]
    once = (seeds.ROLLOUT_STREAM, seeds.SEARCH_STREAM, seeds.TRIAL_STREAM)
    for stream in [*streams, *(start + run for start in once for run in (0, 1, 3_999))]:
        env.set_seed(stream)
        for _ in range(5):
            env.reset()
    assert len(set(started)) == len(started) == 24 * 2 * 5


def test_rollouts_start_in_training_resets(started):
    env = make_env(num_envs=2, max_episode_steps=3)
    policy = PriorNoise(env.latent_dim)
    collect_rollouts(env, policy, 200, seed=seeds.ROLLOUT_STREAM + 5, observation_keys=["observation"], progress=False)
    assert len(started) > 40 and all(seed in seeds.TRAINING for seed in started)


@pytest.mark.parametrize("kind", ["checks", "diagnosis", "held out", "progress"])
@pytest.mark.parametrize("make", [lambda: PointReachEnv(num_envs=4), lambda: SerialEnv(2, lambda: PointReachEnv(2))])
def test_asked_resets_are_made_as_they_were_asked(started, kind, make):
    asked = seeds.first(KINDS[kind], 4)
    reset_to_seeds(make(), asked)
    assert started[-4:] == asked


@pytest.mark.parametrize("env_seeds", [None, 5, [7, 8, 9, 10]])
def test_a_batched_simulator_gets_a_seed_for_each_env(env_seeds):
    """ManiSkill makes up what a shorter list leaves out."""
    from dsrl_torchrl.envs.maniskill import ManiSkillEnv

    env = ManiSkillEnv(env=FakeManiSkill(4, 5), seed=seeds.segment_stream(3, 1))
    env.reset(seed=env_seeds)
    ((given, _),) = env._env.resets
    assert len(set(given)) == 4
    assert all(seed in seeds.TRAINING for seed in given) or given[0] in (5, 7)


@pytest.mark.slow
def test_worker_processes_start_as_serial_envs_do():
    starts = []
    for env in (SerialEnv(2, PointReachEnv), ParallelEnv(2, PointReachEnv, mp_start_method=READY)):
        env.set_seed(seeds.segment_stream(12, 3))
        starts.append([env.reset()["observation"] for _ in range(3)])
        env.close()
    assert all((a == b).all() for a, b in zip(*starts, strict=True))


def test_segment_streams_are_all_different():
    segments = [*range(20), *range(990, 1_010), 5_000, 800_999]
    runs = sorted({*RUNS, 1, 2, 10, 100})
    streams = [seeds.segment_stream(run, segment) for run in runs for segment in segments]
    streams += [
        start + run for start in (seeds.ROLLOUT_STREAM, seeds.SEARCH_STREAM, seeds.TRIAL_STREAM) for run in runs
    ]
    assert len(set(streams)) == len(streams)
    assert min(streams) >= 0 and max(streams) < 2**32


def test_the_numbers_of_ordinary_runs():
    assert [seeds.segment_stream(*run) for run in ((0, 0), (0, 3), (2, 11))] == [0, 300, 201_100]


@pytest.mark.parametrize("run", [-1, 4_000, 10**9])
def test_runs_without_room_are_one_line(run):
    for ask in (seeds.demonstration_seeds, lambda seed: seeds.segment_stream(seed, 0)):
        with pytest.raises(UserError, match=rf"seed must lie in 0\.\.3999, got {run}"):
            ask(run)


def test_too_many_segments_are_one_line():
    with pytest.raises(UserError, match="at most 801000 segments: raise checkpoint_env_steps"):
        seeds.segment_stream(0, 801_000)
