"""Episodes written down by hand: two envs, four macro steps of a collector's batch."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY


def make_batch(**columns):
    entries = {name: torch.tensor(values).unsqueeze(-1) for name, values in columns.items()}
    return TensorDict({"next": entries}, [2, len(next(iter(columns.values()))[0])])


BATCH = {
    "reward": [[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]],
    STEPS_KEY: [[3, 2, 3, 3], [3, 3, 3, 1]],
    "done": [[False, True, False, False], [False, False, False, True]],
    "success_once": [[False, True, False, True], [False, True, False, False]],
}


def test_returns_lengths_and_success_of_finished_episodes():
    tracker = EpisodeTracker(10)
    assert tracker.metrics() == {"env/episodes": 0.0}
    tracker.update(make_batch(**BATCH))
    assert tracker.metrics() == {
        "env/episodes": 2.0,
        "env/reward": pytest.approx(103 / 15),  # of the 5 and 10 env steps
        "env/success_running": 1.0,  # the second one succeeded in its second macro step, and not at its end
        "env/return": pytest.approx((3 + 100) / 2),
        "env/episode_len": pytest.approx((5 + 10) / 2),
    }


def test_success_is_once_per_episode_and_forgotten_after_it():
    tracker = EpisodeTracker(10)
    success = [[True, False, False, False], [False, False, False, False]]
    done = [[False, True, False, True], [False, False, False, True]]
    batch = make_batch(**BATCH | {"success_once": success, "done": done})
    for t in range(4):
        tracker.update(batch[:, t : t + 1])
    assert tracker.state_dict()["successes"] == [1.0, 0.0, 0.0]
    tracker.update(batch[:, :1])
    tracker.restart()  # the envs have been reset: that success was another episode's
    tracker.update(batch[:, 1:])
    assert tracker.state_dict()["successes"][3:] == [0.0, 0.0, 0.0]


def test_episodes_go_on_over_batches_until_a_restart():
    whole, parts, restarted = EpisodeTracker(10), EpisodeTracker(10), EpisodeTracker(10)
    batch = make_batch(**BATCH)
    whole.update(batch)
    for half in (batch[:, :3], batch[:, 3:]):
        parts.update(half)
    assert parts.metrics() == whole.metrics()
    restarted.update(batch[:, :3])
    restarted.restart()
    restarted.update(batch[:, 3:])
    assert restarted.metrics()["env/return"] == pytest.approx((3 + 40) / 2)


def test_the_window_and_a_resume():
    tracker = EpisodeTracker(1)
    tracker.update(make_batch(**BATCH))
    assert tracker.metrics()["env/return"] == 100  # the last one to finish
    resumed = EpisodeTracker(1)
    resumed.load_state_dict(tracker.state_dict())
    assert resumed.metrics() == tracker.metrics()


def test_an_env_that_does_not_tell_success():
    tracker = EpisodeTracker(10)
    tracker.update(make_batch(**{name: values for name, values in BATCH.items() if name != "success_once"}))
    assert set(tracker.metrics()) == {"env/episodes", "env/return", "env/episode_len", "env/reward"}
