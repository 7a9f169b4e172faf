"""Demonstrations as macro transitions, against sums made by hand."""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict

from dsrl_torchrl.data.demonstration_transitions import demonstration_transitions, step_penalty
from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.macro_transitions import macro_transition_keys
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.latent_env.macro_step import make_macro_env

GAMMA = 0.5


def episode(length=5, success_at=4):
    success = torch.zeros(length, dtype=torch.bool)
    if success_at is not None:
        success[success_at:] = True
    observation = torch.arange(length + 1.0).unsqueeze(-1)  # o_t = t
    action = torch.arange(length).float().unsqueeze(-1) * 10  # a_t = 10 t
    none = torch.zeros(length, dtype=torch.bool)
    return Episode(TensorDict({"observation": observation}, [length + 1]), action, success, none, none)


def test_every_step_starts_a_macro_step():
    td = demonstration_transitions([episode()], obs_horizon=1, act_horizon=3, gamma=GAMMA, reward=step_penalty)
    assert td["observation"].flatten().tolist() == [0, 1, 2, 3, 4]
    assert td["next", "observation"].flatten().tolist() == [3, 4, 5, 5, 5]
    assert td["next", "chunk_steps"].flatten().tolist() == [3, 3, 3, 2, 1]
    # Rewards -1 -1 -1 -1 0, discounted by powers of a half.
    assert td["next", "reward"].flatten().tolist() == [-1.75, -1.75, -1.5, -1.0, 0.0]
    assert td["next", "terminated"].flatten().tolist() == [False, False, True, True, True]
    assert td["next", "success"].flatten().tolist() == [False, False, True, True, True]
    assert td["next", "action_chunk"].squeeze(-1).tolist() == [
        [0, 10, 20], [10, 20, 30], [20, 30, 40], [30, 40, 40], [40, 40, 40],
    ]  # fmt: skip
    assert not td["next", "truncated"].any()
    assert torch.equal(td["next", "done"], td["next", "terminated"])


def test_an_episode_ends_at_its_first_success():
    td = demonstration_transitions(
        [episode(length=8, success_at=2)],
        obs_horizon=1,
        act_horizon=2,
        gamma=GAMMA,
        reward=partial(step_penalty, success_bonus=0.0),
    )
    assert td["next", "observation"].flatten().tolist() == [2, 3, 3]
    assert td["next", "terminated"].flatten().tolist() == [False, True, True]
    assert td["next", "reward"].flatten().tolist() == [-1.5, -1.5, -1.0]


def test_without_flags_the_last_step_is_the_success():
    td = demonstration_transitions(
        [episode(success_at=None)], obs_horizon=1, act_horizon=3, gamma=GAMMA, reward=step_penalty
    )
    assert td["next", "terminated"].flatten().tolist() == [False, False, True, True, True]


def test_the_history_is_primitive_and_repeats_the_first_observation():
    td = demonstration_transitions([episode()], obs_horizon=3, act_horizon=2, gamma=GAMMA, reward=step_penalty)
    assert td["observation"].tolist()[:3] == [[0, 0, 0], [0, 0, 1], [0, 1, 2]]
    assert td["next", "observation"].tolist()[0] == [0, 1, 2]


def test_the_schema_is_that_of_online_data_without_the_noise():
    td = demonstration_transitions(
        [episode(), episode()], obs_horizon=1, act_horizon=3, gamma=GAMMA, reward=step_penalty
    )
    assert len(td) == 10
    assert set(td.keys(True, True)) == set(macro_transition_keys(["observation"])) - {"action"}


def test_every_entry_has_its_own_history():
    demo = episode()
    t = torch.arange(6)
    observations = TensorDict(
        {
            "pixels": t.to(torch.uint8)[:, None, None, None].expand(6, 3, 2, 2),
            ("robot", "qpos"): t.double().unsqueeze(-1),
        },
        [6],
    )
    demo = Episode(observations, demo.action, demo.success, demo.terminated, demo.truncated)
    td = demonstration_transitions([demo], obs_horizon=2, act_horizon=3, gamma=GAMMA, reward=step_penalty)
    assert td["pixels"].shape == (5, 6, 2, 2) and td["pixels"].dtype == torch.uint8
    assert td["next", "pixels"][0, :, 0, 0].tolist() == [2, 2, 2, 3, 3, 3]
    assert td["robot", "qpos"].dtype == torch.float64
    assert td["next", "robot", "qpos"].tolist() == [[2, 3], [3, 4], [4, 5], [4, 5], [4, 5]]


def test_the_step_penalty_counts_steps():
    success = torch.tensor([False, True])
    assert step_penalty(success).tolist() == [-1, 0] and step_penalty(success, 3.0).tolist() == [-1, 2]


def test_the_same_sums_as_the_env_makes():
    """A demonstration replayed through MacroStep gives the transitions that the offline cut gives at its multiples."""
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
    observations = TensorDict({"observation": torch.stack(observations)}, [len(observations)])
    demo = Episode(observations, torch.stack(actions), torch.stack(flags), none, none)
    offline = demonstration_transitions([demo], obs_horizon=1, act_horizon=3, gamma=0.9, reward=step_penalty)
    macro = make_macro_env(PointReachEnv(num_envs=1, max_episode_steps=40), act_horizon=3, gamma=0.9)
    td = macro.reset(seed=[3])
    for start in range(0, len(actions), 3):
        td = macro.step(td.set("action", offline["next", "action_chunk"][start][None]))
        for key in ("observation", "reward", "chunk_steps", "terminated", "success"):
            torch.testing.assert_close(
                td["next", key][0], offline["next", key][start], msg=lambda m, k=key: f"{k}: {m}"
            )
        td = macro.step_mdp(td)
