from __future__ import annotations

from functools import partial

import pytest
import torch
from torchrl.envs import SerialEnv

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.steerability.prior_rollouts import (
    DIAGNOSIS_SEED,
    collect_prior_rollouts,
    diagnosis_seeds,
    with_layout,
)
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.evaluate import HELD_OUT_SEED
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from tests.steerability.bases import CoinEnv, coin_env, diagonal


def test_the_seeds_are_fixed_nested_and_not_held_out():
    assert diagnosis_seeds(3) == diagnosis_seeds(10)[:3] == [DIAGNOSIS_SEED + i for i in range(3)]
    assert max(diagnosis_seeds(1000)) < HELD_OUT_SEED
    with pytest.raises(UserError, match="resets must be at most"):
        diagnosis_seeds(HELD_OUT_SEED)


def test_episodes_of_length_three_with_chunks_of_two():
    rollouts = collect_prior_rollouts(coin_env(), resets=4, repeats=3)
    assert rollouts.steps.shape == (3, 4, 2)
    assert (rollouts.steps == torch.tensor([2, 1])).all()
    assert rollouts.env_steps == 3 * 4 * 3
    assert rollouts.chunk.shape == (3, 4, 2, 2, 1)
    parity = torch.tensor([1.0, 0, 1, 0])
    torch.testing.assert_close(rollouts.observation[..., 0, 0], parity.expand(3, 4))
    torch.testing.assert_close(rollouts.observation[..., 1], torch.tensor([0.0, 2]).expand(3, 4, 2))
    # Success needs a positive first action and an even seed.
    assert torch.equal(rollouts.success, (rollouts.chunk[:, :, 0, 0, 0] > 0) & parity.bool())
    # Each repeat draws its own noise.
    assert (rollouts.chunk[0] - rollouts.chunk[1]).abs().min() > 0


def test_episodes_that_end_early_are_padded():
    env = coin_env(num_envs=2)
    env.base_env.base_env.length = torch.tensor([[1], [5]])
    rollouts = collect_prior_rollouts(env, resets=2, repeats=1)
    assert rollouts.steps.tolist() == [[[1, 0, 0], [2, 2, 1]]]
    assert rollouts.chunk[0, 0, 1:].abs().max() == 0 and rollouts.observation[0, 0, 1:].abs().max() == 0
    assert len(rollouts.sample_observations(100)) == 4
    assert len(rollouts.sample_observations(3)) == 3


def test_several_envs_give_the_same_starts_and_a_group_may_be_short():
    for env in (coin_env(num_envs=2), coin_env_of_workers()):
        rollouts = collect_prior_rollouts(env, resets=3, repeats=2)
        assert rollouts.success.shape == (2, 3)
        assert rollouts.observation[:, :, 0, 0].tolist() == [[1, 0, 1]] * 2
        env.close()


def coin_env_of_workers():
    make = partial(make_macro_env, CoinEnv(), act_horizon=2, gamma=1.0)
    return LatentActionEnv(SerialEnv(2, make), diagonal(0.2, 0.2, pred_horizon=2, action_dim=1), act_horizon=2)


def test_repeats_by_seed_and_leaves_the_callers_randomness_alone():
    state = torch.get_rng_state()
    first, again = (collect_prior_rollouts(coin_env(), resets=2, repeats=2, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.chunk, again.chunk)
    assert not torch.equal(first.chunk, collect_prior_rollouts(coin_env(), resets=2, repeats=2, seed=4).chunk)


def test_another_layout_on_the_same_env():
    env = coin_env()
    repeated = with_layout(env, "repeat")
    assert (env.noise_layout.dim, repeated.noise_layout.dim) == (2, 1)
    chunk = collect_prior_rollouts(repeated, resets=3, repeats=1).chunk
    torch.testing.assert_close(chunk[..., 0, :], chunk[..., 1, :])
    chunk = collect_prior_rollouts(env, resets=3, repeats=1).chunk
    assert (chunk[..., 0, :] - chunk[..., 1, :]).abs().min() > 0


@pytest.mark.parametrize(
    ("env", "counts", "message"),
    [
        ({"success": False}, {}, "needs an env with a `success` entry"),
        ({}, {"resets": 0}, "resets must be an integer of at least 1"),
        ({}, {"repeats": 0}, "repeats must be an integer of at least 1"),
    ],
)
def test_mistakes_are_one_clear_line(env, counts, message):
    with pytest.raises(UserError, match=message):
        collect_prior_rollouts(coin_env(**env), **counts)
