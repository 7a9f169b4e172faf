from __future__ import annotations

from functools import partial

import pytest
import torch
from torchrl.envs import SerialEnv

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from dsrl_torchrl.seeds import DIAGNOSIS
from dsrl_torchrl.steerability.prior_rollouts import collect_prior_rollouts, with_layout
from tests.steerability.bases import CoinEnv, camera_env, coin_env, diagonal


def test_the_starts_are_the_first_of_the_diagnosis_seeds():
    class Recording(CoinEnv):
        def _reset(self, tensordict, seed=None, **kwargs):
            asked.append(list(seed))
            return super()._reset(tensordict, seed=seed, **kwargs)

    asked: list[list[int]] = []
    env = LatentActionEnv(Recording(2), diagonal(0.2, 0.2, pred_horizon=2, action_dim=1))
    collect_prior_rollouts(env, resets=4, repeats=2)
    assert asked == [list(DIAGNOSIS[:2]), list(DIAGNOSIS[2:4])] * 2


def test_episodes_of_length_three_with_chunks_of_two():
    rollouts = collect_prior_rollouts(coin_env(), resets=4, repeats=3)
    assert rollouts.steps.shape == (3, 4, 2)
    assert (rollouts.steps == torch.tensor([2, 1])).all()
    assert rollouts.env_steps == 3 * 4 * 3
    assert rollouts.chunk.shape == (3, 4, 2, 2, 1)
    parity = torch.tensor([1.0, 0, 1, 0])
    torch.testing.assert_close(rollouts.observations["observation"][..., 0, 0], parity.expand(3, 4))
    torch.testing.assert_close(rollouts.observations["observation"][..., 1], torch.tensor([0.0, 2]).expand(3, 4, 2))
    # Success needs a positive first action and an even seed.
    assert torch.equal(rollouts.success, (rollouts.chunk[:, :, 0, 0, 0] > 0) & parity.bool())
    # Each repeat draws its own noise.
    assert (rollouts.chunk[0] - rollouts.chunk[1]).abs().min() > 0


def test_episodes_that_end_early_are_padded():
    env = coin_env(num_envs=2)
    env.base_env.base_env.length = torch.tensor([[1], [5]])
    rollouts = collect_prior_rollouts(env, resets=2, repeats=1)
    assert rollouts.steps.tolist() == [[[1, 0, 0], [2, 2, 1]]]
    assert rollouts.chunk[0, 0, 1:].abs().max() == 0 and rollouts.observations["observation"][0, 0, 1:].abs().max() == 0
    assert len(rollouts.sample_observations(100)) == 4
    assert len(rollouts.sample_observations(3)) == 3


def test_several_envs_give_the_same_starts_and_a_group_may_be_short():
    for env in (coin_env(num_envs=2), coin_env_of_workers()):
        rollouts = collect_prior_rollouts(env, resets=3, repeats=2)
        assert rollouts.success.shape == (2, 3)
        assert rollouts.observations["observation"][:, :, 0, 0].tolist() == [[1, 0, 1]] * 2
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
    assert (env.latent_dim, repeated.latent_dim) == (2, 1)
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


def test_named_entries_keep_their_types():
    rollouts = collect_prior_rollouts(camera_env(num_envs=2), resets=3, repeats=2)
    met = rollouts.observations
    assert met.batch_size == (2, 3, 2) and set(met.keys(True, True)) == {"pixels", ("agent", "state")}
    assert (met["pixels"].dtype, met["agent", "state"].dtype) == (torch.uint8, torch.float64)
    assert met["pixels"].shape == (2, 3, 2, 3, 8, 8)
    assert (met["pixels"][:, :, 0].amax((-3, -2, -1)) == torch.tensor([200, 0, 200])).all()
    assert rollouts.sample_observations(100).batch_size == (12,)
    only_state = collect_prior_rollouts(camera_env(), resets=1, repeats=1, observation_keys=[("agent", "state")])
    assert list(only_state.observations.keys(True, True)) == [("agent", "state")]
