"""SMDP semantics of the macro step, against hand-computed episodes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torchrl.envs import ParallelEnv, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs
from torchrl.objectives.value import TD0Estimator

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from tests.processes import READY
from tests.scripted_env import ScriptedEnv

GAMMA = 0.9


def macro_env(lengths, terminates, act_horizon=3, obs_horizon=1):
    return make_macro_env(
        ScriptedEnv(lengths, terminates), act_horizon=act_horizon, gamma=GAMMA, obs_horizon=obs_horizon
    )


def step(env, td, value=1.0):
    td["action"] = torch.full(env.action_spec.shape, value)
    return env.step(td)


def test_whole_chunk_sums_discounted_rewards():
    env = macro_env([9], [True])
    td = step(env, env.reset())
    assert td["next", "reward"].item() == pytest.approx(1 + 0.9 * 2 + 0.81 * 3, rel=1e-6)
    assert td["next", "chunk_steps"].item() == 3
    assert td["next", "observation"].tolist() == [[3.0, 3.0]]
    assert not td["next", "done"].item()


@pytest.mark.parametrize("terminates", [True, False])
def test_short_last_chunk_stops_at_the_end(terminates):
    """Length 5, H_a 3: the second chunk runs 2 steps; a time limit truncates, it does not terminate."""
    env = macro_env([5], [terminates])
    td = step(env, env.reset())
    td = step(env, env.step_mdp(td))
    assert td["next", "reward"].item() == pytest.approx(4 + 0.9 * 5, rel=1e-6)
    assert td["next", "chunk_steps"].item() == 2
    assert td["next", "done"].item()
    assert td["next", "terminated"].item() is terminates
    assert td["next", "truncated"].item() is not terminates


def test_each_env_of_a_batch_ends_on_its_own():
    env = macro_env([1, 2, 9], [True, False, True])
    td = step(env, env.reset())
    following = td["next"]
    torch.testing.assert_close(
        following["reward"].squeeze(-1), torch.tensor([1.0, 1 + 0.9 * 2, 1 + 0.9 * 2 + 0.81 * 3])
    )
    assert following["chunk_steps"].squeeze(-1).tolist() == [1, 2, 3]
    # Latched at each env's own end, though the simulator stepped on.
    assert following["observation"][:, 0].tolist() == [1.0, 2.0, 3.0]
    assert following["terminated"].squeeze(-1).tolist() == [True, False, False]
    assert following["truncated"].squeeze(-1).tolist() == [False, True, False]
    assert following["success"].squeeze(-1).tolist() == [False, True, False]
    assert following["success_once"].squeeze(-1).tolist() == [False, True, True]


def test_a_time_limit_at_the_first_action_ends_the_chunk():
    env = macro_env([1, 9], [False, True])
    following = step(env, env.reset())["next"]
    torch.testing.assert_close(following["reward"].flatten(), torch.tensor([1.0, 1 + 0.9 * 2 + 0.81 * 3]))
    assert following["chunk_steps"].flatten().tolist() == [1, 3]
    assert following["observation"][:, 0].tolist() == [1.0, 3.0]
    assert following["truncated"].flatten().tolist() == [True, False]


def test_nan_after_an_episodes_end_is_not_in_its_reward():
    """A simulator that goes on with one that fell may give anything."""

    class Diverging(ScriptedEnv):
        def _step(self, tensordict):
            out = super()._step(tensordict)
            return out.set("reward", torch.where(self.t > self.lengths, torch.nan, out["reward"]))

    env = make_macro_env(Diverging([1, 9], [True, True]), act_horizon=3, gamma=GAMMA)
    following = step(env, env.reset())["next"]
    torch.testing.assert_close(following["reward"].flatten(), torch.tensor([1.0, 1 + 0.9 * 2 + 0.81 * 3]))


def test_the_chunk_is_the_commanded_one():
    env = macro_env([9, 1], [True, True])
    td = env.reset()
    td["action"] = torch.rand(2, 3, 1)
    out = env.step(td)
    torch.testing.assert_close(out["next", "action_chunk"], td["action"])
    torch.testing.assert_close(out["next", "observation"][0, 1], td["action"][0].sum())
    torch.testing.assert_close(out["next", "observation"][1, 1], td["action"][1, 0, 0])


def test_finished_envs_reset_alone():
    env = macro_env([2, 9], [True, True])
    _, td = env.step_and_maybe_reset(env.reset().set("action", torch.ones(2, 3, 1)))
    assert td["observation"][:, 0].tolist() == [0.0, 3.0]
    assert td["done"].squeeze(-1).tolist() == [False, False]


def test_history_is_made_of_primitive_steps():
    env = macro_env([9], [True], act_horizon=3, obs_horizon=2)
    td = env.reset()
    assert td["observation"].tolist() == [[0.0, 0.0, 0.0, 0.0]]
    td = step(env, td)
    # The last two of the three primitive observations, oldest first.
    assert td["next", "observation"].tolist() == [[2.0, 2.0, 3.0, 3.0]]


@pytest.mark.parametrize("batched", [SerialEnv, partial(ParallelEnv, mp_start_method=READY)], ids=["serial", "workers"])
def test_workers_match_one_batched_env(batched):
    """Macro steps inside workers equal macro steps around one batch, ends included."""
    lengths, terminates = [1, 5, 9], [True, False, True]
    reference = macro_env(lengths, terminates)
    workers = batched(3, [partial(macro_env, [n], [t]) for n, t in zip(lengths, terminates, strict=True)])
    try:
        keys = ["reward", "chunk_steps", "observation", "terminated", "truncated", "done", "action_chunk"]
        a, b = reference.reset(), workers.reset()
        for _ in range(4):
            actions = torch.rand(3, 3, 1)
            a, a_next = reference.step_and_maybe_reset(a.set("action", actions))
            b, b_next = workers.step_and_maybe_reset(b.set("action", actions.unsqueeze(1)))
            for key in keys:
                torch.testing.assert_close(b["next", key].squeeze(1), a["next", key])
            a, b = a_next, b_next
    finally:
        workers.close()


def test_specs():
    check_env_specs(macro_env([4, 9], [True, False]))
    check_env_specs(macro_env([4, 9], [True, False], obs_horizon=3))


def test_an_entry_without_which_there_is_no_history_is_named():
    with pytest.raises(UserError, match="no entry 'state' in the env: it has observation, success"):
        make_macro_env(ScriptedEnv([3], [True]), act_horizon=2, gamma=0.9, obs_horizon=2, history_keys=["state"])


def test_torchrls_estimators_by_themselves_do_not_read_k():
    """At the root, where they look, is the previous macro step's."""
    root = macro_env([4, 9], [True, False]).rollout(2)
    assert TD0Estimator(value_network=None, gamma=0.9).tensor_keys.steps_to_next_obs not in root.keys()


@pytest.mark.parametrize("key", ["chunk_steps", "action_chunk"])
def test_an_entry_of_a_macro_steps_name_is_refused(key):
    counter = partial(StepCounter, step_count_key=key)
    counted = TransformedEnv(ScriptedEnv([3], [True]), counter())
    for env, below in ((counted, []), (ScriptedEnv([3], [True]), [counter()])):
        with pytest.raises(UserError, match=f"'{key}' of the env's is in the way"):
            make_macro_env(env, act_horizon=2, gamma=0.9, below=below).reset()


@pytest.mark.parametrize(("act_horizon", "gamma"), [(0, 0.9), (3, 0.0), (3, 1.1)])
def test_bad_arguments(act_horizon, gamma):
    with pytest.raises(UserError):
        make_macro_env(ScriptedEnv([3], [True]), act_horizon=act_horizon, gamma=gamma)
