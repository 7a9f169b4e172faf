from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import SerialEnv

from dsrl_torchrl.collect.episodes import reset_to_seeds, run_episodes
from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY, make_macro_env
from tests.scripted_env import ScriptedCameraEnv, ScriptedEnv


def zero_actions(dim, key="observation"):
    return TensorDictModule(lambda o: torch.zeros(*o.shape[:-1], *dim), in_keys=[key], out_keys=["action"])


class SeededEnv(ScriptedEnv):
    """The episode's length is its reset seed."""

    def _reset(self, tensordict, seed=None, **kwargs):
        if seed is not None:
            self.lengths = torch.tensor(seed).reshape(-1, 1)
        return super()._reset(tensordict, **kwargs)


def make_seeded(batched):
    if batched:
        return make_macro_env(SeededEnv([9, 9], [False, False]), act_horizon=3, gamma=1.0)
    return SerialEnv(2, lambda: make_macro_env(SeededEnv([9], [False]), act_horizon=3, gamma=1.0))


@pytest.mark.parametrize("batched", [True, False])
def test_episodes_that_end_at_different_times(batched):
    """Lengths 2 and 7 with chunks of 3: one macro step and three; the mask tells what belongs to an episode."""
    steps, masks = [], []
    for td, running in run_episodes(make_seeded(batched), zero_actions((3, 1)), [2, 7]):
        steps.append(td["next", STEPS_KEY].flatten().tolist())
        masks.append(running.tolist())
    assert masks == [[True, True], [False, True], [False, True]]
    assert steps[0] == [2, 3]
    assert [row[1] for row in steps] == [3, 3, 1]


@pytest.mark.parametrize("batched", [True, False])
def test_fewer_seeds_than_sub_envs(batched):
    """A sub-env without a seed of its own never counts, and nobody waits for it."""
    masks = [running.tolist() for _, running in run_episodes(make_seeded(batched), zero_actions((3, 1)), [4])]
    assert masks == [[True, False], [True, False]]


@pytest.mark.parametrize("seeds", [[], [1, 2, 3]])
def test_seeds_must_fit_the_batch(seeds):
    with pytest.raises(UserError, match=f"between 1 and 2 reset seeds, one per sub-env, got {len(seeds)}"):
        next(run_episodes(make_seeded(True), zero_actions((3, 1)), seeds))


def test_each_worker_gets_its_seeds():
    env = SerialEnv(2, lambda: make_macro_env(SeededEnv([9, 9], [False] * 2), act_horizon=3, gamma=1.0))
    reset_to_seeds(env, [3, 4, 5, 6])
    assert [worker.base_env.lengths.flatten().tolist() for worker in env._envs] == [[3, 4], [5, 6]]


@pytest.mark.parametrize("batched", [True, False])
def test_nested_entries_and_images(batched):
    """Whatever the entries are, the policy gets what the step before has left; images stay uint8."""
    if batched:
        env = make_macro_env(ScriptedCameraEnv([4, 7], [True, False]), act_horizon=3, gamma=1.0)
    else:
        ends = [([4], [True]), ([7], [False])]
        env = SerialEnv(
            2, [lambda end=end: make_macro_env(ScriptedCameraEnv(*end), act_horizon=3, gamma=1.0) for end in ends]
        )
    seen, masks = [], []
    for td, running in run_episodes(env, zero_actions((3, 1), ("agent", "state")), [0, 1]):
        assert td["pixels"].dtype == td["next", "pixels"].dtype == torch.uint8
        td = td.reshape(2)
        assert (td["pixels"] == td["agent", "state"][:, :1, None, None]).all()
        seen.append(td["agent", "state"][:, 0].tolist())
        masks.append(running.tolist())
    assert masks == [[True, True], [True, True], [False, True]]
    assert seen[:2] == [[0, 0], [3, 3]]
    assert seen[2][1] == 6


class BreakingEnv(ScriptedEnv):
    """Sub-env 0 observes NaN at the fifth step."""

    def _observe(self):
        td = super()._observe()
        td["observation"][0] += torch.where(self.t[0] == 5, torch.nan, 0.0)
        return td


@pytest.mark.parametrize(("length", "breaks"), [(9, True), (3, False)])
def test_nan_is_caught_in_an_episode_but_not_after_its_end(length, breaks):
    env = make_macro_env(BreakingEnv([length, 8], [False, False]), act_horizon=5, gamma=1.0)
    episodes = run_episodes(env, zero_actions((5, 1)), [0, 1])
    if breaks:
        with pytest.raises(NonFiniteError, match=r"next\.observation is NaN or infinite at env step 0"):
            list(episodes)
    else:
        assert len(list(episodes)) == 2
