"""Updates while the envs of worker processes simulate: the same run as without."""

from __future__ import annotations

from functools import partial

import pytest

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.collect import macro_steps
from dsrl_torchrl.collect.worker_processes import WorkerEnvs
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from dsrl_torchrl.training import online
from tests.training.toy import DSRLNA, GAMMA, NoiseIsAction, assert_same_state, make_agent, run_online


def make_points():
    return make_macro_env(PointReachEnv(num_envs=2, max_episode_steps=20), act_horizon=2, gamma=GAMMA)


@pytest.mark.slow
def test_updates_while_the_workers_simulate_make_the_same_run(tmp_path, monkeypatch):
    env = LatentActionEnv(WorkerEnvs(2, make_points), NoiseIsAction(), noise_layout="repeat", action_magnitude=1.5)
    workers = env.base_env
    while not isinstance(workers, WorkerEnvs):
        workers = workers.base_env
    run = partial(
        run_online, env=env, total_env_steps=200, warmup_env_steps=60, checkpoint_env_steps=70, log_env_steps=1
    )
    made, waiting = {True: 0, False: 0}, False
    make, wait = online.OwedUpdates.make, WorkerEnvs._wait_for_workers

    def spy_wait(env, workers_range):
        nonlocal waiting
        waiting = True
        wait(env, workers_range)
        waiting = False

    def spy_make(updates):
        made[waiting] += updates._owed
        make(updates)

    monkeypatch.setattr(WorkerEnvs, "_wait_for_workers", spy_wait)
    monkeypatch.setattr(online.OwedUpdates, "make", spy_make)
    try:
        overlapped, in_turn = (make_agent(DSRLNA, env=env, batch_size=8) for _ in range(2))
        result, rows = run(overlapped, tmp_path / "overlapped")
        assert made[True] > 2 * made[False]  # those that end a segment are not made meanwhile
        assert workers.meanwhile is None
        monkeypatch.setattr(macro_steps, "worker_envs", lambda env: None)
        again, rows_in_turn = run(in_turn, tmp_path / "in_turn")
    finally:
        env.close()
    assert rows == rows_in_turn
    assert again.updates == result.updates > 20
    assert_same_state(overlapped, in_turn)


def test_in_one_process_they_are_made_before_what_came_is_stored(tmp_path, monkeypatch):
    """The policy is one round old there, too."""
    order = []
    make, extend = online.OwedUpdates.make, online.Replay.extend
    monkeypatch.setattr(online.OwedUpdates, "make", lambda updates: (order.append(updates._owed), make(updates)))
    monkeypatch.setattr(online.Replay, "extend", lambda replay, data: (order.append("store"), extend(replay, data)))
    agent = make_agent(DSRLNA, batch_size=8)
    run_online(
        agent, tmp_path, total_env_steps=96, warmup_env_steps=16, checkpoint_env_steps=100, macro_steps_per_round=8
    )
    # 8 envs, 2 steps each: the warm-up's one round, then five; the updates of a round wait for the next one to be made.
    assert order == [0, "store", 0, 0, "store", 16, "store", 8, "store", 8, "store", 8, "store", 8]
