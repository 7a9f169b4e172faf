from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.steerability.chunk_jumps import ChunkJumps, chunk_jumps
from dsrl_torchrl.steerability.prior_rollouts import PriorRollouts, collect_prior_rollouts
from tests.steerability.bases import coin_env, diagonal, observations

BASE = diagonal(1.0, pred_horizon=1, action_dim=1)


def rollouts(chunks, steps):
    """One episode; ``chunks`` [T][H_a] of one action dim."""
    chunk = torch.tensor(chunks)[None, None, :, :, None]
    met = observations(len(steps))[None, None]
    return PriorRollouts(met, chunk, torch.tensor([[steps]]), torch.zeros(1, 1).bool(), torch.zeros(1, 1))


def test_jumps_and_steps_by_hand():
    episode = rollouts([[0.0, 0.1, 0.2], [0.7, 0.6, 9.0], [9.0, 9.0, 9.0]], [3, 2, 0])
    measured = chunk_jumps(episode, BASE)
    assert measured.jump == pytest.approx(0.5)
    assert measured.step == pytest.approx((0.1 + 0.1 + 0.1) / 3)  # the 9s were never executed
    assert measured.ratio == pytest.approx(5)


def test_distances_are_in_half_ranges():
    wide = diagonal(1.0, pred_horizon=1, action_dim=1)
    wide.action_low, wide.action_high = torch.tensor([-4.0]), torch.tensor([4.0])
    assert chunk_jumps(rollouts([[0.0, 1.0], [3.0, 3.0]], [2, 2]), wide).jump == pytest.approx(2 / 4)


def test_no_second_chunk_and_chunks_of_one_action():
    assert chunk_jumps(rollouts([[0.0, 1.0]], [2]), BASE) == ChunkJumps(0.0, 1.0)
    single = chunk_jumps(rollouts([[0.0], [0.5]], [1, 1]), BASE)
    assert single == ChunkJumps(0.5, 0.0)
    assert single.ratio == float("inf")


def test_independent_noise_jumps_as_it_steps():
    """Differences of independent N(0, 0.2²) average 0.2 * 2 / sqrt(pi), inside of a chunk and between chunks."""
    episodes = collect_prior_rollouts(coin_env(gain=0.2, length=60, num_envs=40), resets=40, repeats=1)
    measured = chunk_jumps(episodes, BASE)
    expected = 0.2 * 2 / torch.pi**0.5
    assert (measured.jump, measured.step) == pytest.approx((expected, expected), rel=0.05)
