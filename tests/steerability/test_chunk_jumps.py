from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.steerability.chunk_jumps import ChunkJumps, chunk_jumps
from dsrl_torchrl.steerability.prior_rollouts import PriorRollouts, collect_prior_rollouts
from dsrl_torchrl.policies.normalisation import Normalisation
from tests.steerability.bases import coin_env


def rollouts(chunks, steps):
    """One episode; ``chunks`` [T][H_a] of one action dim."""
    chunk = torch.tensor(chunks)[None, None, :, :, None]
    return PriorRollouts(torch.zeros(1, 1, len(steps), 2), chunk, torch.tensor([[steps]]), torch.zeros(1, 1).bool())


def test_jumps_and_steps_by_hand():
    episode = rollouts([[0.0, 0.1, 0.2], [0.7, 0.6, 9.0], [9.0, 9.0, 9.0]], [3, 2, 0])
    measured = chunk_jumps(episode, Normalisation(2, 1))
    assert measured.jump == pytest.approx(0.5)
    assert measured.step == pytest.approx((0.1 + 0.1 + 0.1) / 3)  # the 9s were never executed
    assert measured.ratio == pytest.approx(5)


def test_distances_are_in_half_ranges():
    scales = Normalisation(2, 1)
    scales.fit(torch.randn(10, 2), torch.tensor([[-4.0], [4.0]]))
    assert chunk_jumps(rollouts([[0.0, 1.0], [3.0, 3.0]], [2, 2]), scales).jump == pytest.approx(2 / 4)


def test_no_second_chunk_and_chunks_of_one_action():
    assert chunk_jumps(rollouts([[0.0, 1.0]], [2]), Normalisation(2, 1)) == ChunkJumps(0.0, 1.0)
    single = chunk_jumps(rollouts([[0.0], [0.5]], [1, 1]), Normalisation(2, 1))
    assert single == ChunkJumps(0.5, 0.0)
    assert single.ratio == float("inf")


def test_independent_noise_jumps_as_it_steps():
    """Differences of independent N(0, 0.2²) average 0.2 * 2 / sqrt(pi), inside of a chunk and between chunks."""
    episodes = collect_prior_rollouts(coin_env(gain=0.2, length=60, num_envs=40), resets=40, repeats=1)
    measured = chunk_jumps(episodes, Normalisation(2, 1))
    expected = 0.2 * 2 / torch.pi**0.5
    assert (measured.jump, measured.step) == pytest.approx((expected, expected), rel=0.05)
