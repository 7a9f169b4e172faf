"""What demonstrations would teach silently is said in one line each."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.data.demonstration_checks import demonstration_warnings
from dsrl_torchrl.data.episode import Episode

LOW, HIGH = -torch.ones(3), torch.ones(3)


def make_episodes(count=5, length=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    no = torch.zeros(length, dtype=torch.bool)
    return [
        Episode(
            TensorDict({"observation": torch.randn(length + 1, 4, generator=generator)}, [length + 1]),
            2 * torch.rand(length, 3, generator=generator) - 1,
            no,
            no,
            no,
        )
        for _ in range(count)
    ]


def test_good_demonstrations_say_nothing():
    episodes = make_episodes()
    episodes[0].action[:, 2] = 0.5  # it may rest for a while
    assert demonstration_warnings(episodes, LOW, HIGH) == []


def test_a_dimension_that_never_moves_says_nothing():
    episodes = make_episodes()
    for episode in episodes:
        episode.action[:, 1] = 0.3
    assert demonstration_warnings(episodes, LOW, HIGH) == []


def test_rounding_is_not_outside():
    episodes = make_episodes()
    episodes[0].action[0, 0] = 1.0005
    assert demonstration_warnings(episodes, LOW, HIGH) == []


def test_actions_outside_of_the_controllers_range_are_counted():
    episodes = make_episodes()
    episodes[1].action[:7, 2] = -1.5
    episodes[1].action[3, 0] = 1.25
    (line,) = demonstration_warnings(episodes, LOW, HIGH)
    assert line.startswith("7 of 1000 demonstrated actions lie outside of the controller's range, by up to 0.5 in dim")
    assert "dimension 2 ([-1, 1])" in line and "\n" not in line


def test_without_a_range_nothing_is_outside():
    episodes = make_episodes()
    episodes[1].action[:, 2] *= 3
    bound = torch.full((3,), torch.finfo(torch.float32).max)  # of an unbounded spec
    assert demonstration_warnings(episodes) == demonstration_warnings(episodes, -bound, bound) == []


def test_one_outlier_among_a_thousand_is_named_unless_it_is_clipped():
    episodes = make_episodes()
    episodes[2].action[5, 1] = 50.0
    (line,) = demonstration_warnings(episodes)
    assert "98% of the demonstrated actions of dimension 1 lie in 4% of the range [-1, 50]" in line
    assert "base_policy.training.action_scaling=quantile" in line and "\n" not in line
    assert demonstration_warnings(episodes, action_scaling="quantile") == []


def test_the_same_episode_three_times_is_counted():
    episodes = make_episodes(4)
    (line,) = demonstration_warnings([*episodes, episodes[1], episodes[1]])
    assert line.startswith("2 of 6 demonstrations repeat an earlier one, the first is number 4, which is number 1")


@pytest.mark.parametrize("length", [1, 2])
def test_very_few_actions(length):
    assert demonstration_warnings(make_episodes(1, length), LOW, HIGH) == []
