"""Golden noise (Eq. 31): which candidate each env plays, what an episode is worth, and who is dropped when."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.agents import GoldenNoise
from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.collect.macro_steps import macro_steps_of
from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from tests.training.toy import Killed, assert_same_state, make_env, run_online

from .cases import GAMMA, make_agent, state_env


def observed(*steps):
    """What the policy reads of envs that made so many env steps in their last macro step; 0 after a reset."""
    return TensorDict({"chunk_steps": torch.tensor(steps)[:, None]}, [len(steps)])


def outcome(rewards, steps, done):
    following = {
        "reward": torch.tensor(rewards)[:, None],
        "chunk_steps": torch.tensor(steps)[:, None],
        "done": torch.tensor(done)[:, None],
    }
    return TensorDict({"next": TensorDict(following, [len(done)])}, [len(done)])


def played(agent, td):
    """The candidates whose noise the policy gave."""
    noise = agent.policy(td)["action"]
    return [(agent.candidates == w).all(-1).nonzero().item() for w in noise]


def play(agent, values, episodes):
    """Episodes of one macro step of three envs, worth ``values`` of their candidate; the candidates that played."""
    counts = [0] * len(values)
    for _ in range(episodes):
        chosen = played(agent, observed(0, 0, 0))
        agent.store(outcome([values[c] for c in chosen], [2] * 3, [True] * 3), online=True)
        for c in chosen:
            counts[c] += 1
    return counts


def test_an_episode_is_worth_its_discounted_return_and_is_played_by_one_candidate():
    agent = make_agent(GoldenNoise, candidates=4, first_episodes=1)
    assert played(agent, observed(0, 0)) == [0, 1]
    agent.store(outcome([-1.0, -2.0], [2, 1], [False, True]), online=True)
    assert played(agent, observed(2, 0)) == [0, 2]  # who goes on keeps its noise
    agent.store(outcome([-3.0, 5.0], [2, 2], [False, False]), online=True)
    assert played(agent, observed(2, 2)) == [0, 2]
    agent.store(outcome([-4.0, 7.0], [1, 2], [True, True]), online=True)
    worth = [-1 - 3 * GAMMA**2 - 4 * GAMMA**4, -2.0, 5 + 7 * GAMMA**2, 0.0]
    torch.testing.assert_close(agent.returns, torch.tensor(worth, dtype=torch.float64), rtol=1e-6, atol=0)
    assert agent.episodes.tolist() == [1, 1, 1, 0]
    assert agent.leader == 2


def test_an_episode_that_a_reset_cuts_off_counts_for_nobody():
    agent = make_agent(GoldenNoise, candidates=4)
    played(agent, observed(0, 0))
    agent.store(outcome([-1.0, -1.0], [2, 2], [False, False]), online=True)
    assert played(agent, observed(0, 0)) == [0, 1]  # both still have the fewest
    agent.store(outcome([-5.0, -6.0], [2, 2], [True, True]), online=True)
    assert agent.returns.tolist() == [-5.0, -6.0, 0.0, 0.0]


def test_the_priors_warm_up_and_offline_data_count_for_nobody():
    agent = make_agent(GoldenNoise)
    for online in (True, False):
        agent.store(outcome([-1.0, -1.0], [2, 2], [True, True]), online=online)
    assert not agent.episodes.any()
    assert agent.leader == 0


def test_the_worse_half_is_dropped_and_the_best_plays_on():
    """8 candidates, the later the better: 16 + 8 + 8 episodes until one is left."""
    values = [float(i) for i in range(8)]
    agent = make_agent(GoldenNoise, candidates=8, first_episodes=2)
    expected = 8 * 2 * (1 + math.log2(8)) / 2
    counts, seen = [0] * 8, []
    while agent.left.sum() > 1:
        counts = [a + b for a, b in zip(counts, play(agent, values, 1), strict=True)]
        seen.append(int(agent.left.sum()))
    assert list(dict.fromkeys(seen)) == [8, 4, 2, 1]
    assert agent.left.nonzero().flatten().tolist() == [agent.leader] == [7]
    assert expected <= sum(counts) <= expected + 3 * 3  # whole rounds of three envs
    assert all(count >= wanted for count, wanted in zip(counts, [2, 2, 2, 2, 4, 4, 8, 8], strict=True))
    assert play(agent, values, 2) == [0, 0, 0, 0, 0, 0, 0, 6]
    assert int(agent.halvings) == 3


def test_of_an_odd_number_the_middle_one_stays():
    agent, seen = make_agent(GoldenNoise, candidates=5, first_episodes=1), []
    while agent.left.sum() > 1:
        play(agent, [float(i) for i in range(5)], 1)
        seen.append(int(agent.left.sum()))
    assert list(dict.fromkeys(seen)) == [5, 3, 2, 1]


def test_who_was_dropped_never_leads_again():
    """Dropped by its mean, not the sum of its fewer episodes; and however badly the winner plays on."""
    agent = make_agent(GoldenNoise, candidates=2, first_episodes=1)
    assert play(agent, [-1.0, -1.5], 1) == [2, 1]
    assert agent.left.tolist() == [True, False]
    play(agent, [-9.0, 0.0], 3)
    assert agent.leader == 0
    assert float(agent.update(TensorDict(), frozenset())["search/leader_return"]) < -1.5


def test_the_kept_policy_is_the_leaders_noise_sampled_or_not():
    env = state_env()
    agent = make_agent(GoldenNoise, env, candidates=3)
    play(agent, [1.0, 3.0, 2.0], 3)
    for shape in ([4], [2, 3]):
        action = agent.kept_policy(TensorDict({}, shape))["action"]
        assert (action == agent.candidates[1]).all() and action.shape == (*shape, env.latent_dim)


def test_it_goes_on_where_it_was_saved(tmp_path):
    agent, other = make_agent(GoldenNoise, candidates=3), make_agent(GoldenNoise, seed=7, candidates=3)
    play(agent, [1.0, 3.0, 2.0], 5)
    agent.save(tmp_path)
    other.load(tmp_path)
    assert_same_state(agent, other)
    assert torch.equal(
        other.kept_policy(TensorDict({}, [1]))["action"], agent.kept_policy(TensorDict({}, [1]))["action"]
    )


def test_every_env_step_belongs_to_the_search():
    """In a latent env: the candidate's noise is what was executed, from a reset to the next."""
    env = state_env()
    agent = make_agent(GoldenNoise, env, candidates=4)
    finished = 0
    with macro_steps_of(env, agent.policy, 0, lambda: None) as batches:
        for _, batch in zip(range(30), batches, strict=False):
            chosen = agent.candidates[agent._playing]
            assert torch.equal(batch["action"].reshape(4, -1), chosen)
            agent.store(to_macro_transitions(batch, agent.in_keys), online=True)
            finished += int(batch["next", "done"].sum())
    assert finished > 20
    assert int(agent.episodes.sum()) == finished


def test_kill_and_resume_equals_the_uninterrupted_run(tmp_path):
    def run(agent, folder, **options):
        small = {"total_env_steps": 600, "warmup_env_steps": 0, "offline_fraction": 0.0, "utd": 0.125}
        return run_online(agent, folder, **small | options)

    def make():
        return make_agent(GoldenNoise, make_env(), gamma=0.9, candidates=4, first_episodes=2)

    whole, killed, resumed = make(), make(), make()
    run(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        run(killed, tmp_path / "killed", kill_at=500)
    run(resumed, tmp_path / "killed", resume=True)
    assert_same_state(resumed, whole)
    assert whole.episodes.sum() > 20


@pytest.mark.parametrize("seed", range(3))
def test_a_constant_noise_that_pays_is_found(tmp_path, seed):
    """Where all starts lie in the same direction from the goal, one velocity takes most of them there."""
    env = make_env(num_envs=16)
    env.base_env.base_env._draw = lambda seed: _start_right_above(seed)
    agent = make_agent(GoldenNoise, env, seed=seed, gamma=0.9, candidates=32, first_episodes=1)
    run_online(agent, tmp_path, env=env, total_env_steps=2_000, warmup_env_steps=0, offline_fraction=0.0, utd=0.125)
    found, prior = (evaluate(env, policy, range(500, 532)) for policy in (agent.kept_policy, PriorNoise(2)))
    assert found.success_once.value > prior.success_once.value + 0.3


def _start_right_above(seed):
    """Start and goal of an episode: the start is to the right of and above the goal at the origin."""
    return np.stack([np.random.default_rng(seed).uniform(0.45, 0.55, size=2), np.zeros(2)])


@pytest.mark.parametrize("words", [["stage2.from_stage1=[actor]"], ["stage2.offline_fraction=0.5"]])
def test_there_is_nothing_to_learn_offline(words):
    with pytest.raises(UserError, match=r"GoldenNoise learns nothing offline: set stage2.from_stage1=\[\]") as error:
        compose(["task=toy", "algorithm=golden_noise", *words])
    assert "\n" not in str(error.value)


def test_it_knows_nothing_of_a_states_noise():
    with pytest.raises(UserError, match="no critic"):
        make_agent(GoldenNoise).noise_values(TensorDict({}, [1]), torch.zeros(1, 4))


@pytest.mark.parametrize("options", [{"candidates": 0}, {"first_episodes": 0}, {"actor_lr": 1e-3}])
def test_bad_options(options):
    with pytest.raises(UserError, match=next(iter(options))):
        GoldenNoise.Config(**options)
