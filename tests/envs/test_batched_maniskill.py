"""The class that runs hundreds of GPU envs, on a fake batched simulation."""

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from dsrl_torchrl.envs.maniskill import ManiSkillEnv
from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.seeds import TRAINING
from tests.envs.fake_maniskill import FakeManiSkill


def make_env(num_envs=4, limit=5, **kwargs):
    return ManiSkillEnv(env=FakeManiSkill(num_envs, limit), seed=0, **kwargs)


def step(env, tensordict, actions):
    return env.step(tensordict.set("action", torch.tensor(actions).unsqueeze(-1)))["next"]


def test_specs():
    check_env_specs(make_env())


@pytest.mark.parametrize("key", ["state", ("robot", "state")])
def test_the_observation_has_the_name_that_it_is_given(key):
    env = make_env(observation_key=key)
    check_env_specs(env)
    rollout = env.rollout(3, break_when_any_done=False)
    assert rollout["next"][key].shape == (4, 3, 2)
    assert "observation" not in rollout.keys()
    env._env.x[2] = float("nan")
    with pytest.raises(NonFiniteError, match="state is NaN or infinite"):
        env.rand_step(rollout["next"][:, -1])


def test_every_entry_is_batched():
    env = make_env()
    rollout = env.rollout(3, break_when_any_done=False)
    assert rollout.batch_size == (4, 3)
    assert rollout["next", "observation"].shape == (4, 3, 2)
    for key in ("success", "reward", "terminated", "truncated", "done"):
        assert rollout["next", key].shape == (4, 3, 1)


def test_step_penalty_and_both_ends_apart():
    env = make_env(limit=2)
    now = step(env, env.reset(), [0.0, 0.0, 1.0, -1.0])
    now = step(env, now, [0.0, 1.0, 1.0, -1.0])
    # env 0 runs out of time, 1 succeeds with its last step, 2 went on succeeding, 3 failed
    assert now["success"].flatten().tolist() == [False, True, True, False]
    assert now["terminated"].flatten().tolist() == [False, True, True, True]
    assert now["truncated"].all() and now["done"].all()
    assert now["reward"].flatten().tolist() == [-1.0, 0.0, 0.0, -1.0]


def test_success_bonus():
    env = make_env(num_envs=1, success_bonus=3.0)
    assert step(env, env.reset(), [1.0])["reward"].item() == 2.0


def test_only_the_time_limit_ends_an_evaluation():
    env = make_env(num_envs=2, limit=2, terminate_on_success=False)
    now = step(env, env.reset(), [1.0, -2.0])
    assert now["success"].flatten().tolist() == [True, False]
    assert not now["done"].any()
    now = step(env, now, [-1.0, 0.0])
    assert not now["success"].any() and not now["terminated"].any() and now["truncated"].all()


def test_partial_reset_touches_the_masked_envs_only():
    env = make_env(limit=9)
    now = step(env, env.reset(), [0.5, 2.0, 0.5, 2.0])
    before = now["observation"].clone()
    mask = torch.tensor([False, True, False, False]).unsqueeze(-1)
    again = env.reset(now.set("_reset", mask))
    assert env._env.resets[-1][1] == [1]
    assert torch.equal(again["observation"][[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.equal(again["observation"][1], before[1])
    assert again["done"].flatten().tolist() == [False, False, False, True]


def test_partial_resets_do_not_repeat_a_start():
    env = make_env()
    now = env.reset()
    starts = []
    for _ in range(5):
        now = env.reset(now.set("_reset", torch.tensor([False, False, False, True]).unsqueeze(-1)))
        starts.append(now["observation"][3, 0].item())
    assert len(set(starts)) == 5


def test_seeded_partial_reset_depends_on_the_given_seeds_only():
    starts = []
    for warm_up in (0, 3):
        env = make_env()
        now = env.reset()
        for _ in range(warm_up):
            now = env.reset()
        mask = torch.tensor([False, True, True, False]).unsqueeze(-1)
        starts.append(env.reset(now.set("_reset", mask), seed=[7, 8])["observation"][1:3])
    assert torch.equal(*starts)


def test_the_stream_of_starts_is_the_envs_own():
    env = make_env()
    env.set_seed(3)
    first = [env.reset()["observation"] for _ in range(3)]
    env.set_seed(3)
    torch.rand(10)
    second = [env.reset()["observation"] for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    assert all(seed in TRAINING for seeds, _ in env._env.resets for seed in seeds)


def test_an_int_seed_counts_up_over_the_envs():
    env = make_env()
    env.reset(seed=10)
    assert env._env.resets[-1][0] == [10, 11, 12, 13]


def test_wrong_number_of_seeds():
    with pytest.raises(UserError, match="4 envs got 2 seeds"):
        make_env().reset(seed=[1, 2])


def test_nan_names_quantity_and_step():
    env = make_env(limit=9)
    now = step(env, env.reset(), [0.0] * 4)
    env._env.x[2] = float("nan")
    with pytest.raises(NonFiniteError, match="observation is NaN or infinite at env step 2"):
        step(env, now, [0.0] * 4)


def test_returned_tensors_are_not_the_simulators():
    env = make_env()
    now = env.reset()
    before = now["observation"].clone()
    step(env, now.clone(), [0.3] * 4)
    assert torch.equal(now["observation"], before)


def test_close():
    env = make_env()
    env.close()
    assert env._env.closed and env.is_closed


def test_unknown_reward():
    with pytest.raises(UserError, match="unknown reward 'shaped'; one of step_penalty, dense, sparse"):
        make_env(reward="shaped")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is allowed with a GPU")
def test_gpu_simulation_needs_a_gpu():
    with pytest.raises(UserError, match="sim_backend=physx_cuda needs a CUDA GPU"):
        ManiSkillEnv(num_envs=2, sim_backend="physx_cuda")
