from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from dsrl_torchrl.latent_env.saved_states import SavedStates, can_restore, restore_states, save_states
from tests.scripted_env import ScriptedEnv

KEYS = ("observation", "reward", "done", "truncated", "success", "chunk_steps")


def go_on(env, td, chunks):
    """Entries ``[N, T]`` of the steps that follow."""
    steps = []
    for chunk in chunks:
        td = env.step(td.set("action", chunk))
        steps.append(td["next"].select(*KEYS).clone())
        td = env.step_mdp(td)
    return torch.stack(steps, 1)


def started(obs_horizon):
    env = make_macro_env(
        PointReachEnv(3, goal=None, max_episode_steps=20, terminate_on_success=False),
        act_horizon=2,
        gamma=0.9,
        obs_horizon=obs_horizon,
    )
    td = env.reset(seed=[5, 6, 7])
    for _ in range(3):
        td = env.step_mdp(env.step(td.set("action", torch.rand(3, 2, 2) - 0.5)))
    return env, td


@pytest.mark.parametrize("obs_horizon", [1, 3])
def test_going_back_is_exact_with_history_and_time_limit(obs_horizon):
    torch.manual_seed(0)
    env, td = started(obs_horizon)
    saved, chunks = save_states(env, td), torch.rand(8, 3, 2, 2) * 2 - 1
    first = go_on(env, td, chunks)
    assert first["truncated"][:, 6].all()  # 3 macro steps before, so that 14 of 20 steps are left
    env.reset(seed=[1, 2, 3])
    again = go_on(env, restore_states(env, saved), chunks)
    assert (first == again).all()


@pytest.mark.parametrize("obs_horizon", [1, 3])
def test_any_sub_env_goes_back_to_the_state_of_any_other(obs_horizon):
    torch.manual_seed(0)
    env, td = started(obs_horizon)
    saved, chunks = save_states(env, td), torch.rand(5, 1, 2, 2) * 2 - 1
    own = go_on(env, td, chunks.expand(5, 3, 2, 2))
    both = SavedStates.cat([saved[[2, 2]], saved[[0]]])
    assert len(both) == 3
    assert (go_on(env, restore_states(env, both), chunks.expand(5, 3, 2, 2)) == own[[2, 2, 0]]).all()


def test_what_was_saved_stays_as_it_was():
    """Whatever is done in place to what it was made of, and to what it gave back."""
    env, td = started(1)
    saved = save_states(env, td)
    before = saved.root.clone()
    td["observation"].zero_()
    restore_states(env, saved).set("action", torch.zeros(3, 2, 2))["observation"].zero_()
    assert saved.root.keys() == before.keys() and (saved.root == before).all()


def test_an_env_that_cannot():
    env = make_macro_env(ScriptedEnv([3], [True]), act_horizon=2, gamma=0.9)
    assert not can_restore(env) and can_restore(started(1)[0])
    with pytest.raises(UserError, match=r"ScriptedEnv cannot go back to a state: give it get_state\(\) and set_state"):
        save_states(env, env.reset())
