"""Stage 2 on a task whose optimum is known in closed form, its counts, and its checkpoints."""

from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import ExplorationType, exploration_type

from dsrl_torchrl.agents import PPO, REDQ
from dsrl_torchrl.envs.toy import STEP_SIZE
from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.training import online
from dsrl_torchrl.training.online import OnlineConfig
from tests.toy_optimum import optimal_steps
from tests.training.toy import (
    AGENTS,
    DSRLAWMLE,
    DSRLNA,
    DSRLSAC,
    FULL_SPEED,
    TD3,
    BestOfN,
    make_agent,
    make_env,
    run_offline,
    run_online,
    tiny,
)

SEEDS = range(500, 564)


def optimal_length(env):
    """Mean over ``SEEDS``; lengths are whole macro steps of 2 env steps."""
    size = len(env.reset())
    starts = [env.reset(seed=list(SEEDS[i : i + size]))["observation"] for i in range(0, len(SEEDS), size)]
    return (2 * torch.ceil(optimal_steps(torch.cat(starts), torch.zeros(2)) / 2)).mean().item()


def best_of_prior_length(env, candidates):
    """Mean over ``SEEDS`` for whoever knows the dynamics and takes the best of so many noises of the prior."""

    def choose(position):
        noise = torch.randn(candidates, *position.shape).clamp(-FULL_SPEED, FULL_SPEED)
        after = position + 2 * STEP_SIZE * noise / FULL_SPEED
        return noise.gather(0, after.abs().amax(-1).argmin(0)[None, :, None].expand(1, *position.shape))[0]

    return evaluate(env, TensorDictModule(choose, ["observation"], ["action"]), SEEDS).length_mean


@pytest.mark.slow
@pytest.mark.parametrize("kind", AGENTS)
def test_what_is_reachable_is_reached(tmp_path, kind):
    """The optimum for agents that search all noises; for those that choose among the prior's, the best of as many."""
    slowly = kind is TD3  # its deterministic actor saturates in a corner if it runs ahead of its critics
    soon = kind is DSRLNA  # for which a shorter run is enough, whatever the seed
    agent = make_agent(
        kind, num_cells=(64, 64), batch_size=64, critic_lr=2e-3, tau=0.03, critic_only_updates=300, actor_average=0.9,
        actor_lr=3e-4 if slowly else 2e-3, actor_interval=2 if slowly else 1, backup="min", m_candidates=32,
        beta_latent=30.0, tau_baseline=1 / 30, candidates=16,
    )  # fmt: skip
    run_online(
        agent, tmp_path, env=make_env(num_envs=32), seed=0,
        total_env_steps=8_000 if slowly else 4_500 if soon else 6_000,
        warmup_env_steps=2_500 if slowly else 1_500 if soon else 2_000,
        utd=0.4 if slowly else 0.3 if soon else 0.35,
        macro_steps_per_round=32, replay_size=20_000, checkpoint_env_steps=10_000,
    )  # fmt: skip
    env = make_env(gamma=1.0, num_envs=32)
    reachable = optimal_length(env)
    if kind in (DSRLAWMLE, BestOfN):
        reachable = best_of_prior_length(env, 32 if kind is DSRLAWMLE else 16)
    learned = evaluate(env, agent.kept_policy, SEEDS, deterministic=True)
    assert learned.success_once.value == 1.0
    assert learned.length_mean <= 1.15 * reachable
    assert evaluate(env, PriorNoise(2), SEEDS).success_once.value < 0.7


def test_an_on_policy_agent_learns_from_consecutive_steps_of_its_own(tmp_path, monkeypatch):
    """Each once, none across a reset, from the first on, whatever the warm-up; their densities are the policy's."""
    agent, seen = make_agent(PPO, batch_size=8, actor_lr=1e-9), []
    original = agent.finish_rollout
    monkeypatch.setattr(agent, "finish_rollout", lambda rollout: (seen.append(rollout.clone()), original(rollout))[1])
    options = {"offline_fraction": 0.0, "utd": 0.5, "macro_steps_per_round": 24}
    result, _ = tiny(agent, tmp_path, checkpoint_env_steps=90, **options)
    assert len(seen) > 3 and sum(len(rollout.reshape(-1)) for rollout in seen) == result.macro_steps
    assert seen[0].shape == (8, 3)
    for rollout in seen:
        following = rollout["next"]
        goes_on = ~following["done"][:, :-1].squeeze(-1)
        assert torch.equal(following["observation"][:, :-1][goes_on], rollout["observation"][:, 1:][goes_on])
        dist = agent.actor.get_dist(agent.encoder(rollout.copy()))
        torch.testing.assert_close(dist.log_prob(rollout["action"]), rollout["sample_log_prob"], rtol=1e-3, atol=1e-3)


def test_an_on_policy_agent_gets_no_offline_data(tmp_path, offline):
    agent = make_agent(PPO, batch_size=8)
    with pytest.raises(UserError, match=r"PPO learns from its own newest .*: set stage2\.offline_fraction=0, got 0\.5"):
        tiny(agent, tmp_path, offline=offline)
    with pytest.raises(UserError, match="PPO learns on-policy alone"):
        run_offline(agent, offline, tmp_path)


def test_the_envs_discount_is_the_agents(tmp_path):
    with pytest.raises(UserError, match=r"the env sums rewards with gamma 0\.8, the agent bootstraps with 0\.9"):
        tiny(make_agent(DSRLSAC), tmp_path, env=make_env(gamma=0.8))


def test_updates_begin_after_the_warm_up_and_catch_up(tmp_path):
    _, rows = tiny(make_agent(DSRLSAC, batch_size=8), tmp_path, total_env_steps=100)
    updates = [row["train/updates"] for _, row in rows]
    assert updates[:2] == [0, 0]
    assert updates[2] == rows[2][1]["replay_buffer/size"]


def test_what_is_collected_is_stored_as_online_and_counted_and_the_data_as_offline(tmp_path, offline, monkeypatch):
    """Env steps are those that were made: episodes of 5 end inside of a macro step of 2."""
    agent, stored = make_agent(DSRLAWMLE, batch_size=8), []
    original = agent.store

    def watched(transitions, *, online):
        stored.append((len(transitions), int(transitions["next", "chunk_steps"].sum()), online))
        return original(transitions, online=online)

    monkeypatch.setattr(agent, "store", watched)
    result, _ = tiny(agent, tmp_path, env=make_env(max_episode_steps=5), offline=offline)
    assert (stored[0][0], stored[0][2]) == (len(offline), False)
    collected = stored[1:]
    assert all(online for *_, online in collected)
    assert sum(n for n, *_ in collected) == result.macro_steps
    assert sum(steps for _, steps, _ in collected) == result.env_steps < 2 * result.macro_steps


def test_what_is_collected_explores(tmp_path):
    agent, asked = make_agent(DSRLSAC, batch_size=8), set()
    agent.policy.register_forward_pre_hook(lambda *_: asked.add(exploration_type()))
    tiny(agent, tmp_path)
    assert asked - {None} == {ExplorationType.RANDOM}  # TorchRL asks once, before, what the policy writes


def test_the_replay_is_as_large_and_as_offline_as_asked(tmp_path, offline):
    _, rows = tiny(make_agent(DSRLSAC, batch_size=8), tmp_path, replay_size=24)
    last = rows[-1][1]
    assert (last["replay_buffer/size"], last["replay_buffer/utilization"]) == (24, 1.0)
    agent = make_agent(DSRLAWMLE, batch_size=8)
    for fraction, share in ((0.0, 0), (0.25, 2), (0.5, 4), (None, 7)):
        replay = online.make_replay(agent, OnlineConfig(offline_fraction=fraction), offline)
        replay.extend(agent.store(offline[:1].copy(), online=True))
        assert replay.offline_share == share


def test_a_rollout_ends_where_envs_are_reset(tmp_path, monkeypatch):
    """Even where no update was made from it: the first one comes in the second segment."""
    agent, seen = make_agent(PPO, batch_size=8), []
    original = agent.finish_rollout
    monkeypatch.setattr(agent, "finish_rollout", lambda rollout: (seen.append(rollout.clone()), original(rollout))[1])
    tiny(agent, tmp_path, total_env_steps=120, offline_fraction=0.0, utd=0.02, macro_steps_per_round=24)
    (rollout,) = seen
    goes_on = ~rollout["next", "done"][:, :-1].squeeze(-1)
    following, now = rollout["next", "observation"][:, :-1], rollout["observation"][:, 1:]
    assert torch.equal(following[goes_on], now[goes_on])


def test_a_round_ends_where_its_macro_steps_are_passed(tmp_path):
    """8 envs and rounds of 12: after 16, 24, 40, 48, ... macro steps, and where a segment ends."""
    options = {"warmup_env_steps": 0, "checkpoint_env_steps": 200, "log_env_steps": 1, "macro_steps_per_round": 12}
    _, rows = tiny(make_agent(DSRLSAC, batch_size=8), tmp_path, utd=0.5, **options)
    made = {int(row["replay_buffer/size"]): row["train/updates"] for _, row in rows}
    ends = [n for n in made if n % 12 < 8 or n == max(made)]
    assert made == {n: max((end // 2 for end in ends if end <= n), default=0) for n in made}


@pytest.mark.parametrize("by_prior", [True, False])
def test_the_warm_up_is_the_priors_or_the_agents_own(tmp_path, monkeypatch, by_prior):
    """The prior has no bound; the latent policy stays inside of it."""
    agent, seen = make_agent(DSRLSAC, batch_size=8), []
    original = agent.store

    def watched(transitions, *, online):
        seen.append(transitions["action"].clone())
        return original(transitions, online=online)

    monkeypatch.setattr(agent, "store", watched)
    tiny(agent, tmp_path, warmup_env_steps=120, total_env_steps=180, warm_up_by_prior=by_prior)
    noise = torch.cat(seen)
    assert len(noise) >= 90
    assert bool((noise[:60].abs() > FULL_SPEED).any()) == by_prior
    assert (noise[64:].abs() <= FULL_SPEED).all()


@pytest.mark.parametrize("kind", AGENTS)
def test_everything_that_must_be_logged_is(tmp_path, kind):
    env = make_env(max_episode_steps=6)  # episodes end in so short a run
    _, rows = tiny(make_agent(kind, batch_size=8), tmp_path, env=env, checkpoint_env_steps=200)
    wanted = {
        "train/utd", "train/updates", "replay_buffer/size", "replay_buffer/utilization", "env/success_running",
        "env/return", "env/reward", "env/episode_len", "env/episodes",
    }  # fmt: skip
    wanted |= {metric for metrics, _ in kind.panels for metric in metrics}
    critic = "q_noise" if kind in (DSRLSAC, TD3, REDQ) else "q_action"
    wanted |= {f"{critic}/{name}" for name in ("loss", "td_error", "q_mean", "q_std", "grad_norm")}
    wanted |= set() if kind is BestOfN else {"actor/loss", "actor/grad_norm"}
    assert wanted <= rows[-1][1].keys()
    with_temperature = kind in (DSRLSAC, DSRLNA, REDQ)  # the imitating actor has none, nor has TD3's
    assert ("actor/alpha" in rows[-1][1], "actor/alpha_loss" in rows[-1][1]) == (with_temperature, with_temperature)


def test_nan_rewards_are_named_and_the_last_checkpoint_stays(tmp_path):
    env = make_env()
    base, steps = env.base_env.base_env, 0
    advance = base._advance

    def poisoned(action):
        nonlocal steps
        steps += 1
        observation, success, reward, terminated, truncated = advance(action)
        return observation, success, reward * (float("nan") if steps > 16 else 1.0), terminated, truncated

    base._advance = poisoned
    with pytest.raises(NonFiniteError, match=r"next\.reward is NaN or infinite at env step \d+"):
        tiny(make_agent(DSRLSAC, env=env), tmp_path, env=env)
    assert len(list((tmp_path / "checkpoints").iterdir())) >= 1


@pytest.mark.parametrize(("kind", "critic"), [(DSRLSAC, "q_noise"), (DSRLNA, "q_action"), (BestOfN, "q_action")])
def test_nan_losses_are_named(tmp_path, kind, critic):
    with pytest.raises(NonFiniteError, match=rf"{critic}/.* at update"):
        tiny(make_agent(kind, batch_size=8, critic_lr=1e9), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"utd": 0.0}, "utd"),
        ({"total_env_steps": -1}, "total_env_steps"),
        ({"warmup_env_steps": -1}, "warmup_env_steps"),
        ({"warmup_env_steps": 900, "total_env_steps": 900}, r"warmup_env_steps \(900\) must be below"),
        ({"offline_fraction": 1.0}, "offline_fraction"),
        ({"replay_size": "large"}, "replay_size"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        OnlineConfig(**options)
