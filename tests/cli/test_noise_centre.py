"""The search for a noise to steer around: what it finds, and that it is the same again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.steps import noise_centre
from dsrl_torchrl.cli.steps.noise_centre import search_centre
from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.prior_noise import make_prior
from dsrl_torchrl.policies import CentredPolicy
from tests.training.toy import make_env


def config(env_steps: int, seed: int = 0):
    words = ["task=toy", f"latent.centre_env_steps={env_steps}", f"seed={seed}", "algorithm.gamma=0.9"]
    return compose([*words, "progress=false"])


def one_way(**options: int) -> LatentActionEnv:
    """All starts lie to the right of and above the goal: one velocity takes most of them there."""
    env = make_env(num_envs=16, **options)
    env.base_env.base_env._draw = lambda seed: np.stack(
        [np.random.default_rng(seed).uniform(0.45, 0.55, size=2), np.zeros(2)]
    )
    return env


@pytest.mark.parametrize("seed", range(3))
def test_the_prior_around_what_it_finds_succeeds_more_often(monkeypatch, seed):
    monkeypatch.setattr(noise_centre, "CANDIDATES", 64)  # few velocities lead there
    env = one_way()
    choice = search_centre(env, config(6_000, seed))
    policy = env.decoder.base_policy
    assert choice.centre.shape == (policy.noise_horizon, policy.noise_dim)
    assert choice.mean_return > choice.mean_return_of_all and choice.env_steps >= 6_000
    assert 1 <= choice.winner_episodes < choice.episodes
    assert "of 64 constant noises" in choice.line()
    centred = LatentActionEnv(env.base_env, CentredPolicy(policy, choice.centre), act_horizon=env.decoder.act_horizon)
    found, plain = (evaluate(each, make_prior(each.decoder), range(500, 532)) for each in (centred, env))
    assert found.success_once.value > plain.success_once.value + 0.3


@pytest.mark.parametrize("reward", [-1.0, 0.0])
def test_where_all_fail_alike_there_is_nothing_to_steer_around(monkeypatch, reward):
    def paid(batch, keys):
        transitions = to_macro_transitions(batch, keys)
        transitions["next", "reward"].fill_(reward)
        return transitions

    monkeypatch.setattr(noise_centre, "to_macro_transitions", paid)
    env = one_way(max_episode_steps=2)  # nobody gets anywhere
    with pytest.raises(UserError, match=r"told no noise from another: each has a mean return") as error:
        search_centre(env, config(300))
    assert "\n" not in str(error.value)


def test_it_finds_the_same_again_whatever_was_drawn_before():
    torch.manual_seed(11)
    first = search_centre(make_env(), config(500))
    torch.manual_seed(12)
    again, other = search_centre(make_env(), config(500)), search_centre(make_env(), config(500, seed=1))
    torch.testing.assert_close(again.centre, first.centre, rtol=0, atol=0)
    assert again.line() == first.line() and not torch.equal(other.centre, first.centre)
