import json

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import check_env_specs

from dsrl_torchrl.data.readers.maniskill import read_maniskill
from dsrl_torchrl.envs.toy import RADIUS, STEP_SIZE, PointReachEnv, make_toy_demonstrations
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.seeds import demonstration_seeds
from tests.toy_optimum import optimal_steps


def greedy(env):
    """The optimal policy: full speed on each axis until it is there."""
    return TensorDictModule(
        lambda _: ((env.goal - env.position) / STEP_SIZE).clamp(-1, 1), in_keys=["observation"], out_keys=["action"]
    )


@pytest.mark.parametrize("goal", [(0.0, 0.0), None])
def test_specs(goal):
    check_env_specs(PointReachEnv(num_envs=3, goal=goal))


@pytest.mark.parametrize("goal", [(0.3, -0.2), None])
def test_the_closed_form_is_the_greedy_policys_length(goal):
    env = PointReachEnv(num_envs=64, goal=goal, terminate_on_success=False)
    now = env.reset(seed=0)
    expected = optimal_steps(env.position.clone(), env.goal)
    assert expected.min() >= 1 and expected.max() <= 19
    rollout = env.rollout(25, greedy(env), auto_reset=False, tensordict=now, break_when_any_done=False)
    first = rollout["next", "success"].squeeze(-1).int().argmax(-1) + 1
    assert torch.equal(first, expected)


def test_closed_form_at_the_border():
    start = torch.tensor([[RADIUS, 0.0], [RADIUS + STEP_SIZE, 0.0], [RADIUS + STEP_SIZE + 1e-3, -0.1]])
    assert optimal_steps(start, torch.zeros(2)).tolist() == [0, 1, 2]


def test_reward_and_both_ends():
    env = PointReachEnv(num_envs=2, max_episode_steps=3)
    now = env.reset(seed=0)
    env.position = torch.tensor([[0.35, 0.0], [0.9, 0.0]])
    for _ in range(3):
        now = env.step(now.set("action", torch.tensor([[-1.0, 0.0]] * 2)))["next"]
    assert now["success"].flatten().tolist() == [True, False]
    assert now["reward"].flatten().tolist() == [0.0, -1.0]
    assert now["terminated"].flatten().tolist() == [True, False]
    assert now["truncated"].all() and now["done"].all()


def test_evaluation_runs_to_the_time_limit():
    env = PointReachEnv(num_envs=2, max_episode_steps=25, terminate_on_success=False)
    now = env.reset(seed=0)
    rollout = env.rollout(25, greedy(env), auto_reset=False, tensordict=now)
    assert rollout.shape == (2, 25)
    assert rollout["next", "success"][:, -1].all() and not rollout["next", "terminated"].any()


def test_a_start_depends_on_its_own_seed_only():
    together = PointReachEnv(num_envs=3, goal=None).reset(seed=[4, 5, 6])["observation"]
    alone = PointReachEnv(num_envs=1, goal=None).reset(seed=[5])["observation"]
    assert torch.equal(together[1:2], alone)


def test_partial_reset():
    env = PointReachEnv(num_envs=3, seed=0)
    now = env.step(env.rand_action(env.reset()))["next"]
    mask = torch.tensor([[True], [False], [True]])
    again = env.reset(now.clone().set("_reset", mask))
    assert torch.equal(again["observation"][1], now["observation"][1])
    assert not torch.equal(again["observation"][0], now["observation"][0])
    assert env.elapsed.tolist() == [0, 1, 0]


def test_set_seed_fixes_the_stream():
    env = PointReachEnv(num_envs=2)
    env.set_seed(0)
    first = torch.stack([env.reset()["observation"] for _ in range(3)])
    env.set_seed(0)
    assert torch.equal(torch.stack([env.reset()["observation"] for _ in range(3)]), first)
    assert not torch.equal(first[0], first[1])


def test_demonstrations_are_successful_and_repeatable(tmp_path):
    first = read_maniskill(make_toy_demonstrations(tmp_path / "a.h5", 6, seed=3, progress=False))
    second = read_maniskill(make_toy_demonstrations(tmp_path / "b.h5", 6, seed=3, progress=False))
    assert len(first) == 6
    for a, b in zip(first, second, strict=True):
        assert a.success[-1] and not a.success[:-1].any() and a.terminated[-1]
        assert (a.observations == b.observations).all() and torch.equal(a.action, b.action)
    assert len({len(episode) for episode in first}) > 1


@pytest.mark.parametrize("seed", [0, 3])
def test_demonstrations_start_from_the_runs_own_seeds(tmp_path, seed):
    path = make_toy_demonstrations(tmp_path / "a.h5", 3, seed=seed, progress=False)
    used = [episode["episode_seed"] for episode in json.loads(path.with_suffix(".json").read_text())["episodes"]]
    assert set(used) <= set(demonstration_seeds(seed)[:40]) and len(set(used)) == 3
    first = read_maniskill(path)[0].observations["observation"][0]
    assert torch.equal(first, PointReachEnv().reset(seed=used[0])["observation"][0])


def test_failed_demonstrations_leave_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="only 0 of 2 toy demonstrations"):
        make_toy_demonstrations(tmp_path / "a.h5", 2, max_episode_steps=1, progress=False)
    assert not list(tmp_path.iterdir())


def test_the_first_reset_after_set_seed_starts_afresh(monkeypatch):
    """As one with seeds of its own: a simulator is then built anew, so that a resumed run is the uninterrupted one."""
    env, afresh = PointReachEnv(num_envs=2), []
    start = env._start

    def watched(seeds, env_idx, asked):
        afresh.append(asked)
        return start(seeds, env_idx, asked)

    monkeypatch.setattr(env, "_start", watched)
    for _ in range(2):
        env.set_seed(3)
        for seed in (None, None, [5, 6]):
            env.reset() if seed is None else env.reset(seed=seed)
    assert afresh == [True, False, True] * 2
