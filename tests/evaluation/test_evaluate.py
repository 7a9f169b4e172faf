from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import SerialEnv

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.evaluation.evaluate import HELD_OUT_SEED, evaluate, held_out_seeds, make_rate, wilson_interval
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from tests.latent_env.test_latent_action_env import TanhPolicy
from tests.scripted_env import ScriptedEnv


def test_wilson_interval_against_published_values():
    # Newcombe 1998, table I: 81/263 and 0/20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


def test_rate():
    rate = make_rate([True, False, True, True])
    assert (rate.value, rate.n) == (0.75, 4)
    assert rate.low < 0.75 < rate.high


def test_held_out_seeds_are_fixed_and_nested():
    assert held_out_seeds(3) == held_out_seeds(10)[:3]
    assert min(held_out_seeds(5)) >= HELD_OUT_SEED


class SeededEnv(ScriptedEnv):
    """The episode's length is its reset seed; success at step 2, lost again at step 3."""

    def _reset(self, tensordict, seed=None, **kwargs):
        if seed is not None:
            self.lengths = torch.tensor(seed).reshape(-1, 1)
        return super()._reset(tensordict, **kwargs)


def zero_actions(dim):
    return TensorDictModule(lambda o: torch.zeros(*o.shape[:-1], *dim), in_keys=["observation"], out_keys=["action"])


@pytest.mark.parametrize("batched", [True, False])
def test_both_success_measures_returns_and_lengths(batched):
    """Lengths 1, 2, 5, 7 with chunks of 3: success is seen at step 2 and only the second episode ends on it."""
    seeds = [1, 2, 5, 7]
    if batched:
        env = make_macro_env(SeededEnv([9, 9], [False, False]), act_horizon=3, gamma=1.0)
        policy = zero_actions((3, 1))
    else:
        env = SerialEnv(2, lambda: make_macro_env(SeededEnv([9], [False]), act_horizon=3, gamma=1.0))
        policy = zero_actions((3, 1))
    result = evaluate(env, policy, seeds)
    assert result.success_once.value == 0.75
    assert result.success_at_end.value == 0.25
    assert result.return_mean == pytest.approx((1 + 3 + 15 + 28) / 4)
    # Up to the end of the macro step with the first success: 1 (none), 2, 3, 3.
    assert result.length_mean == pytest.approx((1 + 2 + 3 + 3) / 4)


def test_seeds_that_do_not_fill_the_batch():
    env = make_macro_env(SeededEnv([9, 9], [False, False]), act_horizon=3, gamma=1.0)
    assert evaluate(env, zero_actions((3, 1)), [2, 2, 5]).success_once.n == 3


def test_evaluation_leaves_the_callers_randomness_alone_and_repeats():
    env = LatentActionEnv(SeededEnv([9, 9], [False, False]), TanhPolicy(), act_horizon=3)
    state = torch.get_rng_state()
    first = evaluate(env, PriorNoise(4), [5, 7])
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluate(env, PriorNoise(4), [5, 7]) == first
