"""Demonstrations as macro transitions, against sums made by hand."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.data.readers.maniskill import Episode
from dsrl_torchrl.data.demonstration_transitions import demonstration_transitions, step_penalty
from dsrl_torchrl.data.macro_transitions import MACRO_TRANSITION_KEYS, load_transitions, save_transitions
from dsrl_torchrl.errors import CheckpointError

GAMMA = 0.5


def episode(length=5, success_at=4):
    success = torch.zeros(length, dtype=torch.bool)
    if success_at is not None:
        success[success_at:] = True
    observation = torch.arange(length + 1.0).unsqueeze(-1)  # o_t = t
    action = torch.arange(length).float().unsqueeze(-1) * 10  # a_t = 10 t
    none = torch.zeros(length, dtype=torch.bool)
    return Episode(observation, action, success, none, none)


def test_every_step_starts_a_macro_step():
    td = demonstration_transitions([episode()], obs_horizon=1, act_horizon=3, gamma=GAMMA, reward=step_penalty(1.0))
    assert td["observation"].flatten().tolist() == [0, 1, 2, 3, 4]
    assert td["next", "observation"].flatten().tolist() == [3, 4, 5, 5, 5]
    assert td["next", "macro_steps"].flatten().tolist() == [3, 3, 3, 2, 1]
    # Rewards -1 -1 -1 -1 0, discounted by powers of a half.
    assert td["next", "reward"].flatten().tolist() == [-1.75, -1.75, -1.5, -1.0, 0.0]
    assert td["next", "terminated"].flatten().tolist() == [False, False, True, True, True]
    assert td["next", "success"].flatten().tolist() == [False, False, True, True, True]
    assert td["next", "executed_chunk"].squeeze(-1).tolist() == [
        [0, 10, 20], [10, 20, 30], [20, 30, 40], [30, 40, 40], [40, 40, 40],
    ]  # fmt: skip
    assert not td["next", "truncated"].any()
    assert torch.equal(td["next", "done"], td["next", "terminated"])


def test_an_episode_ends_at_its_first_success():
    td = demonstration_transitions(
        [episode(length=8, success_at=2)], obs_horizon=1, act_horizon=2, gamma=GAMMA, reward=step_penalty(0.0)
    )
    assert td["next", "observation"].flatten().tolist() == [2, 3, 3]
    assert td["next", "terminated"].flatten().tolist() == [False, True, True]
    assert td["next", "reward"].flatten().tolist() == [-1.5, -1.5, -1.0]


def test_without_flags_the_last_step_is_the_success():
    td = demonstration_transitions(
        [episode(success_at=None)], obs_horizon=1, act_horizon=3, gamma=GAMMA, reward=step_penalty(1.0)
    )
    assert td["next", "terminated"].flatten().tolist() == [False, False, True, True, True]


def test_the_history_is_primitive_and_repeats_the_first_observation():
    td = demonstration_transitions([episode()], obs_horizon=3, act_horizon=2, gamma=GAMMA, reward=step_penalty(1.0))
    assert td["observation"].tolist()[:3] == [[0, 0, 0], [0, 0, 1], [0, 1, 2]]
    assert td["next", "observation"].tolist()[0] == [0, 1, 2]


def test_the_schema_is_that_of_online_data_without_the_noise(tmp_path):
    td = demonstration_transitions(
        [episode(), episode()], obs_horizon=1, act_horizon=3, gamma=GAMMA, reward=step_penalty(1.0)
    )
    assert len(td) == 10
    assert set(td.keys(True, True)) == set(MACRO_TRANSITION_KEYS) - {"action"}
    save_transitions(td, tmp_path / "x.safetensors")
    again = load_transitions(tmp_path / "x.safetensors")
    assert again.batch_size == td.batch_size
    for key, value in td.items(True, True):
        assert torch.equal(again[key], value)
        assert again[key].dtype == value.dtype
    (tmp_path / "x.safetensors").write_bytes(b"no")
    for name in ("x.safetensors", "y.safetensors"):
        with pytest.raises(CheckpointError, match="does not hold macro transitions"):
            load_transitions(tmp_path / name)


def test_the_same_sums_as_the_env_makes():
    """A demonstration replayed through MacroStep gives the transitions that the offline cut gives at its multiples."""
    from dsrl_torchrl.latent_env.macro_step import make_macro_env
    from dsrl_torchrl.envs.toy import PointReachEnv

    env = PointReachEnv(num_envs=1, max_episode_steps=40)
    td = env.reset(seed=[3])
    observations, actions, flags = [td["observation"][0]], [], []
    for _ in range(40):
        action = (-0.7 * td["observation"]).clamp(-1, 1)
        td = env.step(td.set("action", action))["next"]
        observations.append(td["observation"][0])
        actions.append(action[0])
        flags.append(td["success"][0, 0])
        if td["done"].all():
            break
    none = torch.zeros(len(actions), dtype=torch.bool)
    demo = Episode(torch.stack(observations), torch.stack(actions), torch.stack(flags), none, none)
    offline = demonstration_transitions([demo], obs_horizon=1, act_horizon=3, gamma=0.9, reward=step_penalty(1.0))
    macro = make_macro_env(PointReachEnv(num_envs=1, max_episode_steps=40), act_horizon=3, gamma=0.9)
    td = macro.reset(seed=[3])
    for start in range(0, len(actions), 3):
        td = macro.step(td.set("action", offline["next", "executed_chunk"][start][None]))
        for key in ("observation", "reward", "macro_steps", "terminated", "success"):
            torch.testing.assert_close(
                td["next", key][0], offline["next", key][start], msg=lambda m, k=key: f"{k}: {m}"
            )
        td = macro.step_mdp(td)
