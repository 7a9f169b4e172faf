"""Episodes written down by hand: two envs, four macro steps of a collector's batch."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY


def make_batch(**columns):
    entries = {name: torch.as_tensor(values).unsqueeze(-1) for name, values in columns.items()}
    return TensorDict({"next": entries}, entries["done"].shape[:-1])


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
    # The first env's second episode began after 5 of 11 env steps: the other env's of 10 could not have ended by then.
    assert tracker.state_dict()["successes"] == [1.0, 0.0]
    tracker.update(batch[:, :1])
    tracker.restart()  # the envs have been reset: that success was another episode's
    tracker.update(make_batch(**{name: [row * 2 for row in rows] for name, rows in BATCH.items()})[:, 1:])
    assert tracker.state_dict()["successes"][2:] == [1.0, 1.0, 1.0]


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
    assert restarted.metrics()["env/episodes"] == 2
    assert restarted.metrics()["env/return"] == 3  # the 40 ended after 1 env step, too early to count beside one of 5


def test_the_window_and_a_resume():
    tracker = EpisodeTracker(1)
    tracker.update(make_batch(**BATCH))
    assert tracker.metrics()["env/return"] == 100  # the last one to finish
    assert len(tracker.successes) == len(tracker.successful_lengths) == 1
    resumed = EpisodeTracker(1)
    resumed.load_state_dict(tracker.state_dict())
    assert resumed.metrics() == tracker.metrics()
    tracker.restart()
    for each in (tracker, resumed):
        each.update(make_batch(**BATCH)[:, 3:])  # 1 env step, too early to count beside the episode of 10
        assert each.metrics()["env/return"] == 100


def test_an_env_that_does_not_tell_success():
    tracker = EpisodeTracker(10)
    tracker.update(make_batch(**{name: values for name, values in BATCH.items() if name != "success_once"}))
    assert set(tracker.metrics()) == {"env/episodes", "env/return", "env/episode_len", "env/reward"}


def test_resets_do_not_favour_the_short_episodes_which_succeed():
    """Half of all episodes succeed in 2 env steps, the others fail in 10; all envs are reset after 25."""
    generator = torch.Generator().manual_seed(0)
    n_envs, env_steps = 400, 25
    success = torch.zeros(n_envs, env_steps, dtype=torch.bool)
    done, plain = torch.zeros_like(success), []
    for env in range(n_envs):
        now = 0
        while now < env_steps:
            succeeds = bool(torch.rand((), generator=generator) < 0.5)
            now += 2 if succeeds else 10
            if now <= env_steps:
                success[env, now - 1], done[env, now - 1] = succeeds, True
                plain.append(succeeds)
    tracker = EpisodeTracker(None)
    columns = {"reward": torch.ones(n_envs, env_steps), STEPS_KEY: torch.ones(n_envs, env_steps, dtype=torch.int64)}
    tracker.update(make_batch(**columns | {"done": done, "success_once": success}))
    assert sum(plain) / len(plain) > 0.56
    assert tracker.finished == len(plain) and len(tracker.successes) < len(plain)
    assert sum(tracker.successes) / len(tracker.successes) == pytest.approx(0.5, abs=0.03)
