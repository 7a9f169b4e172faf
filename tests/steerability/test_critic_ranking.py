"""The toy env's values are known in closed form: a critic that knows them ranks perfectly."""

from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import ExplorationType, exploration_type

from dsrl_torchrl import LatentActionEnv, seeds
from dsrl_torchrl.envs.toy import RADIUS, STEP_SIZE, PointReachEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.steerability import branched_episodes
from dsrl_torchrl.steerability import critic_ranking as critic_ranking_module
from dsrl_torchrl.steerability.critic_ranking import critic_ranking, rank_against
from tests.steerability.bases import coin_env, diagonal
from tests.toy_optimum import optimal_steps

GAMMA, CHUNK = 0.9, 4
GOAL = torch.zeros(2)


def latent_env(num_envs: int = 5, gamma: float = GAMMA, **options) -> LatentActionEnv:
    """``action = noise`` in the toy world."""
    return LatentActionEnv(
        PointReachEnv(num_envs, **options), diagonal(*[1.0] * 2 * CHUNK, pred_horizon=CHUNK), gamma=gamma
    )


def walk(observation):
    """As fast as possible to the goal, if it is asked for its mode."""
    assert exploration_type() is ExplorationType.DETERMINISTIC
    left, actions = (GOAL - observation) / STEP_SIZE, []
    for _ in range(CHUNK):
        actions.append(left.clamp(-1, 1))
        left = left - actions[-1]
    return torch.cat(actions, -1)


def stay(observation):
    return torch.zeros(len(observation), 2 * CHUNK)


def after(steps):
    """The return of success after ``steps`` more steps of -1, the last of which costs nothing."""
    return -(1 - GAMMA ** (steps.double() - 1)) / (1 - GAMMA)


def values(observations, chunk, following):
    """``Q(s, chunk)`` by hand, an ensemble of one."""
    position, value, alive = observations["observation"], torch.zeros(len(chunk)).double(), torch.ones(len(chunk))
    for j in range(CHUNK):
        position = (position + STEP_SIZE * chunk[:, j].clamp(-1, 1)).clamp(-1, 1)
        success = position.abs().amax(-1) <= RADIUS + 1e-6
        value -= alive * ~success * GAMMA**j
        alive = alive * ~success
    forever = torch.tensor(-1 / (1 - GAMMA)).double()
    return (value + alive * GAMMA**CHUNK * (after(optimal_steps(position, GOAL)) if following is walk else forever))[
        None
    ]


def measure(following, num_envs=5, states=12, sign=1.0, **options):
    env = latent_env(num_envs, **options)
    policy = TensorDictModule(following, ["observation"], ["action"])
    return critic_ranking(
        env,
        policy,
        q_action=lambda s, chunk: sign * values(s, chunk, following),
        q_noise=lambda s, w: sign * values(s, env.decoder.decode(s, w), following),
        states=states,
        noises=6,
    )


@pytest.mark.parametrize(("following", "num_envs", "states"), [(walk, 5, 12), (stay, 20, 40)])
def test_a_critic_that_knows_the_truth(following, num_envs, states):
    ranking = measure(following, num_envs, states)
    assert (ranking.states, ranking.noises, ranking.repeat_error) == (states, 6, 0.0)
    for critic in (ranking.q_action, ranking.q_noise):
        assert critic.pearson.value == pytest.approx(1, abs=1e-6)
        assert critic.spearman.value == pytest.approx(1, abs=1e-6)
        assert critic.share.value == pytest.approx(1, abs=1e-6)
        # Not only their order: the returns are those of the formula, after a time limit, too.
        assert critic.std == pytest.approx(ranking.return_std, abs=1e-5)
        assert critic.gain.value == pytest.approx(ranking.best_gain.value, abs=1e-5)
        assert critic.across_states == pytest.approx(1, abs=1e-6)
    assert (ranking.success == 1) is (following is walk)
    assert "Q^W ranks a state's noises at correlation 1.00 [1.00, 1.00] and gains 100%" in ranking.line()


def test_a_critic_that_ranks_backwards():
    critic = measure(walk, sign=-1.0).q_action
    assert critic.pearson.value == pytest.approx(-1, abs=1e-6)
    assert critic.spearman.value == pytest.approx(-1, abs=1e-6)
    assert critic.share.high < 0


def test_it_does_not_depend_on_how_many_envs_run_side_by_side():
    state = torch.random.get_rng_state()
    one, many = measure(walk, 1, states=4), measure(walk, 7, states=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one == many


def test_a_critic_is_the_mean_of_its_ensemble():
    env = latent_env()
    policy = TensorDictModule(walk, ["observation"], ["action"])

    def two(value, w):
        return torch.cat([value + 9 * w[:, 0], value - 9 * w[:, 0]])

    ranking = critic_ranking(
        env,
        policy,
        q_action=lambda s, chunk: two(values(s, chunk, walk), chunk.flatten(1)),
        q_noise=lambda s, w: two(values(s, env.decoder.decode(s, w), walk), w),
        states=4,
        noises=6,
    )
    assert ranking.q_action.pearson.value == pytest.approx(1, abs=1e-4)
    assert ranking.q_noise.pearson.value == pytest.approx(1, abs=1e-4)


def test_its_states_are_the_diagnosis_and_a_noise_that_repeats_worse_is_an_error(monkeypatch):
    starts, reset, follow = [], branched_episodes.reset_to_seeds, critic_ranking_module.follow_mode

    def watched(env, given):
        starts.extend(given)
        return reset(env, given)

    def drifting(*args, **options):
        returns, *rest = follow(*args, **options)
        returns[-4:] -= 0.5  # the noises once more
        return returns, *rest

    monkeypatch.setattr(branched_episodes, "reset_to_seeds", watched)
    monkeypatch.setattr(critic_ranking_module, "follow_mode", drifting)
    assert measure(walk, states=4).repeat_error == pytest.approx(0.5)
    assert set(starts) == set(seeds.first(seeds.DIAGNOSIS, 4))


def test_by_hand():
    truth = torch.tensor([[0.0, 1.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    value = torch.tensor([[0.0, 3.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    ranking = rank_against(truth, value)
    # Over the first state alone: all noises of the second lead to the same return.
    assert ranking.pearson.value == pytest.approx(torch.corrcoef(torch.stack([truth[0], value[0]]))[0, 1].item())
    ranks = torch.tensor([[0.0, 1.0, 2.5, 2.5], [0.0, 3.0, 1.0, 2.0]])
    assert ranking.spearman.value == pytest.approx(torch.corrcoef(ranks)[0, 1].item())
    assert ranking.gain.value == pytest.approx((1.0 - 1.25) / 2)
    assert ranking.share.value == pytest.approx((1.0 - 1.25) / (2.0 - 1.25))
    assert ranking.across_states == pytest.approx(1)


def test_noises_that_change_nothing_have_no_ranking():
    ranking = measure(stay, max_episode_steps=12, goal=(9.0, 9.0))
    assert (ranking.q_action, ranking.ranked_states, ranking.success) == (None, 0, 0.0)
    assert ranking.line() == "critics: no ranking, all 6 noises of a state lead to the same return"


def test_an_algorithm_without_one_of_the_critics():
    policy = TensorDictModule(walk, ["observation"], ["action"])
    ranking = critic_ranking(
        latent_env(), policy, q_action=lambda s, a: None, q_noise=lambda s, w: w.sum(-1)[None], states=3, noises=2
    )
    assert ranking.q_action is None and ranking.q_noise is not None
    assert "Q^A" not in ranking.line()


def test_mistakes():
    policy = TensorDictModule(walk, ["observation"], ["action"])
    critics = {"q_action": lambda s, a: None, "q_noise": lambda s, w: w.sum(-1)[None]}
    with pytest.raises(UserError, match=r"CoinEnv cannot go back to a state: give it get_state\(\) and set_state\(\)"):
        critic_ranking(coin_env(), policy, **critics)
    with pytest.raises(UserError, match=r"discount below 1 in this process, got gamma=1\.0"):
        critic_ranking(latent_env(gamma=1.0), policy, **critics)
    with pytest.raises(UserError, match="at least 2 noises, got 1"):
        critic_ranking(latent_env(), policy, noises=1, **critics)
