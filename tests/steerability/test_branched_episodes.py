"""States after so many macro steps, whatever runs beside them; and what is recorded of the episodes."""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule

from dsrl_torchrl.steerability.branched_episodes import STATES_APART, follow_mode, reach_states
from tests.steerability.test_critic_ranking import CHUNK, GAMMA, after, latent_env, walk


def test_a_state_is_so_many_macro_steps_from_its_reset():
    env, seen = latent_env(4, goal=(9.0, 9.0)), []
    states, env_steps = reach_states(env, range(10, 17), lambda td, episode, taken: seen.append((td, episode, taken)))
    assert len(states) == 7 and env_steps == 7 * STATES_APART * CHUNK
    reached = {(int(i), taken): td["observation"][row] for td, which, taken in seen for row, i in enumerate(which)}
    assert len(reached) == 7 * STATES_APART
    noises = torch.cat([td["action"] for td, _, _ in seen])
    assert len(noises.unique(dim=0)) == len(noises)  # drawn anew at every macro step
    for i in range(7):
        torch.testing.assert_close(states.root["observation"][i], reached[i, i % STATES_APART])


def test_what_follows_is_the_policy_s_mode():
    env, seen = latent_env(3), []
    policy = TensorDictModule(walk, ["observation"], ["action"])  # asserts that its mode is asked for
    torch.manual_seed(0)
    states, _ = reach_states(env, range(4))
    noise, rows = torch.randn(5, env.latent_dim), [0, 1, 2, 3, 3]
    returns, success, chunk, env_steps = follow_mode(
        env, policy, states, rows, noise, record=lambda td, episode, taken: seen.append((td, episode, taken))
    )
    assert success.all() and chunk.shape == (5, CHUNK, 2)
    steps, totals = torch.zeros(5), torch.zeros(5, dtype=torch.float64)
    for td, episode, taken in seen:
        if not taken:
            torch.testing.assert_close(td["observation"], states.root["observation"][[rows[i] for i in episode]])
            torch.testing.assert_close(td["action"], noise[episode])
        totals[episode] += GAMMA ** steps[episode].double() * td["next", "reward"].squeeze(-1)
        steps[episode] += td["next", "chunk_steps"].squeeze(-1)
    assert int(steps.sum()) == env_steps
    torch.testing.assert_close(totals, returns)
    torch.testing.assert_close(returns, after(steps))  # every step costs 1 but the last


def test_nan_after_an_episodes_end_is_not_in_its_return(monkeypatch):
    env, policy = latent_env(3), TensorDictModule(walk, ["observation"], ["action"])
    torch.manual_seed(0)
    states, _ = reach_states(env, range(3))
    noise, step, lengths = torch.randn(3, env.latent_dim), env.step, []
    expected, *_ = follow_mode(env, policy, states, range(3), noise)
    ended = torch.zeros(3, 1, dtype=torch.bool)

    def diverging(tensordict):
        out = step(tensordict)
        out["next", "reward"].masked_fill_(ended, torch.nan)
        lengths.append(int((~ended).sum()))
        ended.logical_or_(out["next", "done"])
        return out

    monkeypatch.setattr(env, "step", diverging)
    returns, *_ = follow_mode(env, policy, states, range(3), noise)
    assert min(lengths) < 3  # some ended before the others
    torch.testing.assert_close(returns, expected)
