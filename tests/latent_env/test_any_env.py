"""Envs that use what TorchRL's ``step`` and ``reset`` do for them: macro steps do it, too."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, GymWrapper, ParallelEnv, SerialEnv, TransformedEnv
from torchrl.envs.transforms import ObservationNorm, StepCounter
from torchrl.envs.utils import check_env_specs

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from dsrl_torchrl.policies import BasePolicy
from tests.scripted_env import ScriptedEnv


class Passed(BasePolicy):
    """Its noise is its chunk: 4 actions of one dimension."""

    def __init__(self):
        super().__init__(action_dim=1, pred_horizon=4)
        self.freeze()

    def forward(self, observation, noise):
        return noise


class PassedHistory(BasePolicy):
    """The same, and it reads two observations."""

    def __init__(self):
        super().__init__(action_dim=1, pred_horizon=4, obs_horizon=2)
        self.freeze()

    def forward(self, observation, noise):
        assert observation.shape[-1] == 4
        return noise


class Flat(ScriptedEnv):
    """Gives reward and done as ``[*B]``, which TorchRL's ``step`` reshapes."""

    def _step(self, tensordict):
        out = super()._step(tensordict)
        return out.update({key: out[key].squeeze(-1) for key in ("reward", "done", "terminated", "truncated")})


class Goal(EnvBase):
    """Its goal is set at a reset, read at every step and never written again; any batch size."""

    batch_locked = False

    def __init__(self):
        super().__init__()
        self.observation_spec = Composite(observation=Unbounded((2,)))
        self.state_spec = Composite(goal=Unbounded((1,)))
        self.action_spec = Bounded(-1, 1, (1,))
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict):
        batch = () if tensordict is None else tensordict.shape
        return TensorDict({"observation": torch.zeros(*batch, 2), "goal": torch.full((*batch, 1), 7.0)}, batch)

    def _step(self, tensordict):
        observation = tensordict["observation"] + tensordict["action"]
        return TensorDict(
            {
                "observation": observation,
                "reward": tensordict["goal"] - observation[..., :1],
                "done": torch.zeros_like(observation[..., :1], dtype=torch.bool),
            },
            tensordict.shape,
        )

    def _set_seed(self, seed): ...


class Strict(gym.Env):
    """Raises when it is stepped after its end, as robosuite's and Meta-World's envs do."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (2,)), gym.spaces.Box(-1, 1, (1,))

    def __init__(self, length):
        self.length = length

    def reset(self, seed=None, options=None):
        self.t = 0
        return self.observation_space.low * 0, {}

    def step(self, action):
        if self.t == self.length:
            raise RuntimeError("stepped after its end")
        self.t += 1
        return self.observation_space.low * 0, 1.0, self.t == self.length, False, {}


def make_strict(length):
    return GymWrapper(Strict(length))


def test_reward_and_flags_without_their_last_axis():
    flat, usual = (make_macro_env(env([2, 9], [True, False]), act_horizon=3, gamma=0.9) for env in (Flat, ScriptedEnv))
    steps = [env.rollout(3, policy=ones(env), break_when_any_done=False)["next"] for env in (flat, usual)]
    for key in ("reward", "done", "terminated", "chunk_steps", "observation"):
        torch.testing.assert_close(*(step[key] for step in steps))


def ones(env):
    def act(tensordict):
        return tensordict.set("action", torch.ones(env.action_spec.shape))

    return act


def test_gymnasiums_vector_env_that_does_not_reset_itself():
    kwargs = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}
    vector = gym.make_vec("Pendulum-v1", 2, vectorization_mode="sync", vector_kwargs=kwargs)
    env = LatentActionEnv(GymWrapper(vector), Passed(), act_horizon=3)
    assert env.rollout(3, break_when_any_done=False)["next", "reward"].shape == (2, 3, 1)


def test_state_that_is_read_and_not_written_again():
    env = LatentActionEnv(Goal(), Passed(), act_horizon=3, gamma=1.0)
    check_env_specs(env)
    td = env.step(env.reset().set("action", torch.tensor([1.0, 2.0, 3.0, 0.0])))
    assert td["next", "reward"].item() == (7 - 1) + (7 - 3) + (7 - 6)


def test_any_batch_where_the_env_takes_any():
    env = LatentActionEnv(Goal(), Passed(), act_horizon=2)
    root = env.reset(TensorDict({}, [5]))
    assert root["action_chunk"].shape == (5, 2, 1)
    assert env.step(root.set("action", torch.ones(5, 4)))["next", "reward"].shape == (5, 1)


@pytest.mark.parametrize("batch", [SerialEnv, pytest.param(ParallelEnv, marks=pytest.mark.slow)])
def test_a_sub_env_is_left_alone_after_its_end(batch):
    """Episodes of 5 and 9, chunks of 3."""
    env = LatentActionEnv(batch(2, [partial(make_strict, 5), partial(make_strict, 9)]), Passed(), act_horizon=3)
    try:
        steps = env.rollout(6, break_when_any_done=False)["next"]
        assert steps["chunk_steps"].squeeze(-1).tolist() == [[3, 2, 3, 2, 3, 2], [3, 3, 3, 3, 3, 3]]
        assert steps["done"].squeeze(-1).tolist() == [[False, True] * 3, [False, False, True] * 2]
    finally:
        env.close()


@pytest.mark.parametrize("batch", [SerialEnv, pytest.param(ParallelEnv, marks=pytest.mark.slow)])
def test_a_sub_env_is_left_alone_below_a_history_and_a_step_counter(batch):
    """Episodes of 5, and of 9 cut at 7; chunks of 3."""
    env = TransformedEnv(batch(2, [partial(make_strict, 5), partial(make_strict, 9)]), StepCounter(max_steps=7))
    env = LatentActionEnv(env, PassedHistory(), act_horizon=3)
    try:
        steps = env.rollout(6, break_when_any_done=False)["next"]
        assert steps["chunk_steps"].squeeze(-1).tolist() == [[3, 2, 3, 2, 3, 2], [3, 3, 1, 3, 3, 1]]
        assert steps["step_count"].squeeze(-1).tolist() == [[3, 5, 3, 5, 3, 5], [3, 6, 7, 3, 6, 7]]
    finally:
        env.close()


def test_an_appended_transform_measures_its_statistics():
    env = LatentActionEnv(ScriptedEnv([9], [False]), Passed(), act_horizon=2)
    env.append_transform(ObservationNorm(in_keys=["observation"]))
    env.transform[-1].init_stats(8, reduce_dim=(0, 1), cat_dim=1)
    assert env.transform[-1].loc.shape == (2,)
    assert env.transform[-1].parent.rand_action()["action"].shape == (1, 4)
