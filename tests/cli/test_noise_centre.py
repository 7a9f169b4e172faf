"""The search for a noise to steer around: what it finds, when that is kept, and that it is the same again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.steps import noise_centre
from dsrl_torchrl.cli.steps.noise_centre import Trial, search_centre
from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, STEPS_KEY
from dsrl_torchrl.latent_env.prior_noise import make_prior
from dsrl_torchrl.policies import CentredPolicy
from tests.training.toy import make_env

KEYS = ["observation"]


def config(env_steps: int, seed: int = 0):
    words = ["task=toy", f"latent.centre_env_steps={env_steps}", f"seed={seed}", "algorithm.gamma=0.9"]
    return compose([*words, "progress=false"])


def search(env: LatentActionEnv, env_steps: int, seed: int = 0):
    return search_centre(env, config(env_steps, seed), KEYS)


def one_way(**options: int) -> LatentActionEnv:
    """All starts lie to the right of and above the goal: one velocity takes most of them there."""
    env = make_env(num_envs=16, **options)
    env.base_env.base_env._draw = lambda seed: np.stack(
        [np.random.default_rng(seed).uniform(0.45, 0.55, size=2), np.zeros(2)]
    )
    return env


def around(env: LatentActionEnv, centre: torch.Tensor) -> LatentActionEnv:
    policy, act_horizon = env.decoder.base_policy, env.decoder.act_horizon
    return LatentActionEnv(env.base_env, CentredPolicy(policy, centre), act_horizon=act_horizon, noise_layout="repeat")


@pytest.mark.parametrize("seed", range(3))
def test_the_prior_around_what_it_keeps_succeeds_more_often(monkeypatch, seed):
    monkeypatch.setattr(noise_centre, "CANDIDATES", 64)  # few velocities lead there
    env = one_way()
    choice, transitions, episodes = search(env, 8_000, seed)
    policy = env.decoder.base_policy
    assert choice.centre.shape == (policy.noise_horizon, policy.noise_dim)
    assert choice.kept and choice.mean_returns[1] > choice.mean_returns[0]
    assert choice.search_episodes >= 64 and choice.trial_episodes >= 2
    assert choice.env_steps == int(transitions["next", STEPS_KEY].sum()) >= 8_000
    assert episodes.finished >= choice.search_episodes + choice.trial_episodes
    assert "the best of 64 constant noises" in choice.line() and "steered around it" in choice.line()
    found, plain = (
        evaluate(each, make_prior(each.decoder), range(500, 532)) for each in (around(env, choice.centre), env)
    )
    assert found.success_once.value > plain.success_once.value + 0.3


@pytest.mark.parametrize("kept", [False, True])
def test_the_noise_of_its_transitions_is_that_of_the_policy_that_is_steered(monkeypatch, kept):
    """It decodes to what was done."""
    monkeypatch.setattr(noise_centre, "CANDIDATES", 64)
    env = one_way() if kept else one_way(max_episode_steps=2)
    choice, transitions, _ = search(env, 8_000 if kept else 300)
    assert choice.kept == kept
    steered = around(env, choice.centre) if kept else env
    chunks = steered.decoder.decode(transitions.select(*KEYS), transitions["action"])
    torch.testing.assert_close(chunks, transitions["next", CHUNK_KEY])


@pytest.mark.parametrize("reward", [-1.0, 0.0])
def test_where_all_fail_alike_the_base_policy_stays_as_it_is(monkeypatch, reward):
    def paid(batch, keys):
        transitions = to_macro_transitions(batch, keys)
        transitions["next", "reward"].fill_(reward)
        return transitions

    monkeypatch.setattr(noise_centre, "to_macro_transitions", paid)
    choice, *_ = search(one_way(max_episode_steps=2), 300)  # nobody gets anywhere
    assert not choice.kept and "steered as it is" in choice.line()


def test_zero_noise_is_a_candidate(monkeypatch):
    """The only one that is any good, where all start at the goal and any velocity leaves it."""
    env = one_way()
    env.base_env.base_env._draw = lambda seed: np.zeros((2, 2))
    rewards = []

    def paid(batch, keys):
        transitions = to_macro_transitions(batch, keys)
        moved = transitions["next", CHUNK_KEY].flatten(1).norm(dim=-1, keepdim=True)
        transitions["next", "reward"].copy_(-moved)
        rewards.append(moved)
        return transitions

    monkeypatch.setattr(noise_centre, "to_macro_transitions", paid)
    choice, *_ = search(env, 2_000)
    assert rewards and not choice.centre.any() and choice.kept


def test_a_trial_is_of_the_prior_and_of_the_prior_around_the_winner_in_turns():
    env = make_env(num_envs=2_000)
    trial = Trial(torch.tensor([2.0, -1.0]), gamma=0.9)
    noise = trial(env.reset())["action"]
    assert trial.begun == 2_000 and trial.under_way
    for which, mean, std in ((slice(0, None, 2), [0.0, 0.0], 1.0), (slice(1, None, 2), [1.4, -0.7], 0.51**0.5)):
        torch.testing.assert_close(noise[which].mean(0), torch.tensor(mean), rtol=0, atol=0.15)
        torch.testing.assert_close(noise[which].std(0), torch.full((2,), std), rtol=0, atol=0.1)


def test_a_trial_counts_whole_episodes_by_when_they_began():
    """Two envs: one whose episodes take 2 macro steps, one of 5; the trial is over after the third."""

    def macro_step(k, reward, done):
        column = {"reward": reward, STEPS_KEY: k, "done": done}
        return TensorDict({"next": {key: torch.tensor(value).unsqueeze(-1) for key, value in column.items()}}, [2])

    trial, k = Trial(torch.zeros(3), gamma=0.5), [0, 0]
    for t in range(6):
        trial(TensorDict({STEPS_KEY: torch.tensor(k).unsqueeze(-1)}, [2]))
        done = [t % 2 == 1, t == 4]
        trial.store(macro_step([1, 2], [1.0, 8.0], done))
        k = [0 if ended else 1 for ended in done]
        trial.over = t >= 2
        assert trial.under_way == (t < 4)
    # In turns: the first env's, the second env's, the first env's again; its third began too late.
    assert trial.begun == 3
    assert trial.returns == ([1 + 0.5, 1 + 0.5], [8 * (1 + 1 / 4 + 1 / 16 + 1 / 64 + 1 / 256)])


def test_failures_that_outlast_the_budget_count():
    """All envs begin at once, and only who reaches the goal ends in time."""
    choice, transitions, episodes = search(one_way(max_episode_steps=200), 600)
    assert choice.trial_episodes >= 16 and choice.env_steps > 16 * 200
    assert choice.trial_episodes + choice.search_episodes <= episodes.finished
    assert int(transitions["next", "truncated"].sum()) > 0


def test_one_env_step_is_a_trial_of_one_episode_each():
    choice, *_ = search(make_env(num_envs=1), 1)
    assert choice.trial_episodes == 2 and choice.candidates == choice.search_episodes == 1


def test_it_finds_the_same_again_whatever_was_drawn_before():
    torch.manual_seed(11)
    first, kept, _ = search(make_env(), 900)
    torch.manual_seed(12)
    (again, the_same, _), (other, *_) = search(make_env(), 900), search(make_env(), 900, seed=1)
    torch.testing.assert_close(again.centre, first.centre, rtol=0, atol=0)
    torch.testing.assert_close(the_same.to_dict(), kept.to_dict(), rtol=0, atol=0)
    assert again.line() == first.line() and not torch.equal(other.centre, first.centre)
