"""Evaluation during training is noticed by nobody but the log."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from dsrl_torchrl import seeds
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.evaluation import progress
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.evaluation.progress import ProgressEvaluation, env_steps_to_success
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from tests.training.toy import (
    DSRLAWMLE,
    DSRLSAC,
    FULL_SPEED,
    BestOfN,
    Killed,
    NoiseIsAction,
    assert_same_state,
    make_agent,
    make_env,
    run_online,
)

EPISODES = 7
NAMES = {f"eval/success_{when}{how}" for when in ("once", "at_end") for how in ("", "_mode")} | {"eval/episodes"}


def make_evaluation_env():
    """Which draws from every generator when it is made, as simulators do."""
    torch.rand(1), np.random.rand(), random.random()
    env = PointReachEnv(5, max_episode_steps=20, terminate_on_success=False)
    return LatentActionEnv(env, NoiseIsAction(), gamma=1.0, noise_layout="repeat", action_magnitude=FULL_SPEED)


def train(agent, folder, **options):
    small = {"total_env_steps": 200, "warmup_env_steps": 60, "checkpoint_env_steps": 50, "log_env_steps": 1}
    with ProgressEvaluation(make_evaluation_env, EPISODES) as evaluation:
        return run_online(agent, folder, **small | {"evaluation": evaluation, "eval_env_steps": 100} | options)


def evaluations(rows):
    return [(step, row) for step, row in rows if "eval/episodes" in row]


def training(rows):
    return [(step, row) for step, row in rows if "eval/episodes" not in row]


@pytest.mark.parametrize("kind", [DSRLAWMLE, BestOfN])
def test_training_is_the_same_with_and_without(tmp_path, kind):
    watched, alone = make_agent(kind, batch_size=8), make_agent(kind, batch_size=8)
    result, rows = train(watched, tmp_path / "watched")
    other, unwatched = train(alone, tmp_path / "alone", eval_env_steps=None)
    assert_same_state(watched, alone)
    assert not evaluations(unwatched) and training(rows) == unwatched
    assert (result.env_steps, result.updates) == (other.env_steps, other.updates)
    # At the first checkpoints, every 50 steps and a round, at or after every 100.
    steps = [step for step, _ in evaluations(rows)]
    assert steps[0] == 0 and [step // 100 for step in steps] == [0, 1, 2]
    assert all(row.keys() == NAMES and row["eval/episodes"] == EPISODES for _, row in evaluations(rows))


def test_it_is_the_evaluation_of_the_kept_policy_on_resets_of_its_own(monkeypatch):
    made, start = [], PointReachEnv._start

    def spy(self, given, env_idx, asked):
        made.extend(given)
        return start(self, given, env_idx, asked)

    monkeypatch.setattr(PointReachEnv, "_start", spy)
    agent = make_agent(DSRLSAC)
    made.clear()
    generators = torch.random.get_rng_state(), np.random.get_state()[2], random.getstate()
    with ProgressEvaluation(make_evaluation_env, EPISODES) as evaluation:
        metrics = evaluation(agent)
        assert set(made) == set(seeds.first(seeds.PROGRESS, EPISODES))
        assert evaluation(agent) == metrics
    assert torch.equal(torch.random.get_rng_state(), generators[0])
    assert (np.random.get_state()[2], random.getstate()) == generators[1:]
    for how, deterministic in (("", False), ("_mode", True)):
        starts = seeds.first(seeds.PROGRESS, EPISODES)
        expected = evaluate(make_evaluation_env(), agent.kept_policy, starts, deterministic=deterministic)
        assert metrics[f"eval/success_once{how}"] == expected.success_once.value
        assert metrics[f"eval/success_at_end{how}"] == expected.success_at_end.value


def test_the_kept_policy_is_sampled_and_by_its_mode(monkeypatch):
    agent, asked = make_agent(DSRLSAC), []

    def watched(env, policy, starts, *, deterministic):
        asked.append((policy, deterministic))
        return evaluate(env, policy, starts, deterministic=deterministic)

    monkeypatch.setattr(progress, "evaluate", watched)
    with ProgressEvaluation(make_evaluation_env, EPISODES) as evaluation:
        evaluation(agent)
    assert agent.kept_policy is not agent.policy
    assert asked == [(agent.kept_policy, False), (agent.kept_policy, True)]


def test_a_killed_run_goes_on_with_the_same_evaluations(tmp_path):
    whole, killed, resumed = (make_agent(DSRLSAC, batch_size=8) for _ in range(3))
    _, rows = train(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        train(killed, tmp_path / "killed", kill_at=140)
    # How often it is evaluated is none of a checkpoint's business.
    _, more = train(resumed, tmp_path / "killed", resume=True, eval_episodes=3)
    assert_same_state(resumed, whole)
    assert more == rows[-len(more) :] and evaluations(more)


def test_the_env_is_made_when_it_is_needed_and_closed():
    made = []

    def make():
        made.append(make_evaluation_env())
        return made[-1]

    with ProgressEvaluation(make, 3) as evaluation:
        assert not made
        evaluation(make_agent(DSRLSAC))
        evaluation(make_agent(DSRLSAC))
    assert len(made) == 1 and made[0].is_closed
    assert make_env().latent_dim == made[0].latent_dim


def test_env_steps_to_success():
    once = {0: 0.4, 100: 0.6, 200: 0.5, 300: 0.9}
    rows = [
        {"env_steps": 0, "eval/success_once": 0.4, "eval/success_once_mode": 0.8},
        {"env_steps": 50, "env/success_running": 1.0},
        *({"env_steps": step, "eval/success_once": value} for step, value in once.items() if step),
    ]
    assert env_steps_to_success(rows) == {
        "eval/success_once": {"0.5": 100, "0.75": 300, "0.9": 300},
        "eval/success_once_mode": {"0.5": 0, "0.75": 0, "0.9": None},
    }
    assert env_steps_to_success([]) == {}
