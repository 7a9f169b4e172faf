from __future__ import annotations

from itertools import combinations

import pytest
import torch

from dsrl_torchrl.evaluation.rates import wilson_interval
from dsrl_torchrl.steerability.best_of_n import best_of_n
from dsrl_torchrl.steerability.prior_rollouts import collect_prior_rollouts
from tests.steerability.bases import coin_env


def test_success_at_k_is_the_average_over_all_subsets():
    success = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)  # 3 episodes, 4 resets
    headroom = best_of_n(success)
    by_hand = [
        sum(success[list(chosen)].any(0).float().mean().item() for chosen in combinations(range(3), k)) / n_subsets
        for k, n_subsets in ((1, 3), (2, 3), (3, 1))
    ]
    assert headroom.success_at_k == pytest.approx(by_hand)
    assert headroom.success_at_1 == pytest.approx(5 / 12)
    assert headroom.success_at_n.value == 0.75
    assert (headroom.success_at_n.low, headroom.success_at_n.high) == wilson_interval(3, 4)
    assert (headroom.success_at_n.n, headroom.repeats) == (4, 3)


def test_half_of_the_resets_are_a_coin_and_the_others_impossible():
    headroom = best_of_n(collect_prior_rollouts(coin_env(num_envs=50), resets=200, repeats=4).success)
    expected = [0.5 * (1 - 0.5**k) for k in range(1, 5)]
    assert headroom.success_at_k == pytest.approx(expected, abs=0.05)
    assert headroom.success_at_n.low < expected[-1] < headroom.success_at_n.high
