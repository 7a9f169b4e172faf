from __future__ import annotations

import pytest

from dsrl_torchrl.evaluation.rates import make_rate
from dsrl_torchrl.latent_env.noise_layout import NoiseLayout
from dsrl_torchrl.steerability.chunk_jumps import ChunkJumps
from dsrl_torchrl.steerability.layout_trials import LayoutTrial, different_layouts, layout_trial, recommend_layout
from dsrl_torchrl.steerability.prior_rollouts import collect_prior_rollouts
from tests.steerability.bases import coin_env


def trial(name, dim, successes, spread=0.2, episodes=20):
    outcomes = [i < successes for i in range(episodes)]
    return LayoutTrial(name, dim, make_rate(outcomes), spread, ChunkJumps(0.2, 0.1))


@pytest.mark.parametrize(
    ("name", "act_horizon", "names"),
    [
        ("full", 4, ["full", "repeat"]),
        ("act_horizon", 4, ["act_horizon", "repeat"]),
        ("repeat", 4, ["repeat", "full"]),
        ("full", 2, ["full", "act_horizon", "repeat"]),
        ("repeat", 2, ["repeat", "full", "act_horizon"]),
        ("full", 1, ["full", "act_horizon", "repeat"]),
    ],
)
def test_layouts_that_are_the_same_are_tried_once(name, act_horizon, names):
    assert different_layouts(NoiseLayout(name, 4, 2, act_horizon)) == names


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        (NoiseLayout("full", 1, 2, 1), ["full"]),  # a single step of noise: all layouts are the same
        (NoiseLayout("repeat", 1, 2, 1), ["repeat"]),
        (NoiseLayout("full", 3, 2, 4), ["full", "repeat"]),  # not every executed step has a noise
        (NoiseLayout("full", 4, 2, 3, first_action=1), ["full", "act_horizon", "repeat"]),
    ],
)
def test_layouts_of_a_noise_whose_steps_are_not_the_chunks(layout, names):
    assert different_layouts(layout) == names


@pytest.mark.parametrize(
    ("trials", "best"),
    [
        ([trial("full", 32, 12), trial("repeat", 4, 12)], "full"),
        ([trial("full", 32, 12), trial("act_horizon", 16, 11), trial("repeat", 4, 12)], "act_horizon"),
        ([trial("full", 32, 14), trial("act_horizon", 16, 3), trial("repeat", 4, 12)], "full"),  # clearly worse
        ([trial("full", 32, 3), trial("repeat", 4, 16)], "repeat"),
        ([trial("interpolated", 8, 12), trial("full", 32, 12), trial("repeat", 4, 12)], "full"),
        ([trial("interpolated", 8, 16), trial("full", 32, 3), trial("repeat", 4, 3)], "interpolated"),
        ([trial("full", 350, 12), trial("repeat", 7, 12)], "repeat"),  # too many dims to learn in
        ([trial("full", 350, 12), trial("repeat", 7, 2)], "full"),
        ([trial("full", 350, 12), trial("act_horizon", 56, 12), trial("repeat", 7, 12)], "act_horizon"),
        ([trial("full", 350, 12), trial("repeat", 7, 12, spread=0.01)], "full"),  # nothing left to steer
        ([trial("full", 32, 12, spread=0.01), trial("repeat", 4, 12, spread=0.01)], "full"),
    ],
)
def test_recommended_layout(trials, best):
    assert recommend_layout(trials) == best


def test_a_trial_counts_the_first_episode_from_each_reset():
    env = coin_env(gain=0.2, num_envs=10)
    rollouts = collect_prior_rollouts(env, resets=10, repeats=3)
    measured = layout_trial(env, rollouts, rollouts.sample_observations(10))
    assert (measured.name, measured.dim) == ("full", 2)
    assert measured.success == make_rate(rollouts.success[0].tolist())
    assert measured.spread == pytest.approx(0.2, rel=0.2)
