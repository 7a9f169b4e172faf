"""What every algorithm promises to the loops: what an update moves and logs, how it acts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules.distributions import continuous

from dsrl_torchrl.agents import DSRLAWMLE, LPDS, LPS, PPO, BestOfN
from dsrl_torchrl.agents.agent import CRITIC_FILES

from .cases import (
    AGENTS,
    MAGNITUDE,
    TAU,
    changed,
    every_part,
    files,
    make_agent,
    make_batch,
    make_transitions,
    pixel_env,
    state_env,
)  # fmt: skip

CRITIC = frozenset({"critic"})
#: Their noise is the prior's, or near it: no box bounds it.
UNBOUNDED = (BestOfN, LPDS, LPS)
WITH_ACTOR = [kind for kind in AGENTS if kind is not BestOfN]
#: Those that bootstrap in every update; the others do when a rollout is complete.
BOOTSTRAPPING = pytest.mark.parametrize("kind", [kind for kind in AGENTS if not kind.on_policy])


def test_metrics_are_finite_scalars_by_the_names_that_figures_and_checks_read(kind, make_env):
    env = make_env()
    agent = make_agent(kind, env)
    metrics = agent.update(make_batch(agent, env), every_part(agent))
    assert metrics.batch_size == torch.Size([])
    for name, value in metrics.items():
        assert value.shape == () and value.isfinite() and not value.requires_grad, name
        assert name.split("/")[0] in ("q_action", "q_noise", "value", "actor")
    critic = "value" if kind.on_policy else "q_noise" if kind.reads_noise else "q_action"
    wanted = {"loss", "grad_norm"} | (set() if kind.on_policy else {"td_error", "q_mean", "q_std"})
    assert {f"{critic}/{name}" for name in wanted} <= set(metrics.keys())
    if kind in WITH_ACTOR:
        assert {"actor/loss", "actor/grad_norm"} <= set(metrics.keys())
    assert {name for panel, _ in kind.panels for name in panel} <= set(metrics.keys())
    rows = [{name: float(value) for name, value in metrics.items()} for _ in range(12)]
    assert [check(rows, agent.decoder.latent_dim) for check in kind.curve_checks] == [None] * len(kind.curve_checks)


def test_each_part_is_a_fixed_sequence_without_looking_at_values(kind, make_env, monkeypatch):
    """Nothing in an update waits for the device: a CUDA graph can hold it."""
    env = make_env()
    agent = make_agent(kind, env)
    batch = make_batch(agent, env)
    for parts in (CRITIC, every_part(agent)):
        agent.update(batch, parts)  # caches are filled at the first call

    def refuse(*args, **kwargs):
        raise AssertionError("an update looked at a value")

    # TorchRL's TanhNormal looks at its bounds, unless a graph is captured.
    monkeypatch.setattr(continuous, "safe_is_current_stream_capturing", lambda: True)
    looks = ("item", "tolist", "numpy", "cpu", "nonzero", "__float__", "__int__", "__bool__", "__index__")
    for name in looks:
        monkeypatch.setattr(Tensor, name, refuse)
    for parts in (CRITIC, every_part(agent)):
        agent.update(batch, parts)


def test_an_update_leaves_its_batch_alone(kind, make_env):
    env = make_env()
    agent = make_agent(kind, env)
    batch = make_batch(agent, env)
    before = batch.clone()
    agent.update(batch, every_part(agent))
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert all(torch.equal(batch[key], before[key]) for key in before.keys(True, True))


def test_the_critics_step_does_not_move_the_actor_nor_the_actors_step_the_critics(kind, make_env):
    env = make_env()
    agent, twin = make_agent(kind, env), make_agent(kind, env)
    batch, before = make_batch(agent, env), files(agent)
    for learner, parts in ((agent, CRITIC), (twin, CRITIC | {"actor"})):
        torch.manual_seed(5)
        learner.update(batch, parts)
    moved = changed(before, files(agent))
    assert "actor" not in moved
    assert moved >= {name for name in before if name.startswith(CRITIC_FILES) and name != "q_noise"}
    actors = {"actor", "kept_actor"} if kind in WITH_ACTOR else set()
    actors |= {"temperature", "multiplier"} & before.keys()
    assert changed(files(agent), files(twin)) - {"target_actor"} == actors


@pytest.mark.parametrize("kind", WITH_ACTOR)
def test_what_is_kept_is_the_average_of_the_actors(kind):
    """It begins with the first of them (Eq. 16)."""
    agent = make_agent(kind, actor_average=0.75)
    batch = make_batch(agent)
    for weight in (1.0, 0.25):
        before = [p.detach().clone() for p in agent.kept_policy.actor.parameters()]
        agent.update(batch, every_part(agent))
        for old, kept, new in zip(before, agent.kept_policy.actor.parameters(), agent.actor.parameters(), strict=True):
            torch.testing.assert_close(kept, torch.lerp(old, new.detach(), weight))


def test_no_gradient_reaches_the_frozen_policy(kind):
    env = state_env()
    agent = make_agent(kind, env)
    policy = env.decoder.base_policy
    policy.requires_grad_(True)  # as if it could be trained
    before = policy.a.detach().clone()
    batch = make_batch(agent, env)
    undecoded = batch.exclude("pair_noise", "pair_chunk", ("next", "chunk"), ("next", "noise_log_prob"))
    agent.update(undecoded, every_part(agent))
    assert policy.a.grad is None and torch.equal(policy.a, before)
    mine = {p.data_ptr() for p in agent.parameters()}
    assert not mine & {p.data_ptr() for p in policy.parameters()}
    assert not any("base_policy" in name for name in agent.state_dict())


def test_pixels_the_td_loss_trains_the_encoder_and_nothing_else_does(kind):
    env = pixel_env()
    agent, twin = make_agent(kind, env), make_agent(kind, env)
    assert agent.encoder.trainable and agent.target_encoder is not agent.encoder
    batch = make_batch(agent, env)
    before, target = dict(agent.encoder.named_parameters()), dict(agent.target_encoder.named_parameters())
    before, target = ({name: p.detach().clone() for name, p in module.items()} for module in (before, target))
    if hasattr(twin, "distil"):
        twin.distil = lambda batch: {}
    for learner, parts in ((agent, every_part(agent)), (twin, CRITIC)):
        torch.manual_seed(5)
        learner.update(batch, parts)
    alone = dict(twin.encoder.named_parameters())
    for name, p in agent.encoder.named_parameters():
        assert not torch.equal(p, before[name]), name
        assert torch.equal(p, alone[name]), name
    for name, p in agent.target_encoder.named_parameters():
        assert not p.requires_grad
        moved = torch.lerp(target[name], dict(agent.encoder.named_parameters())[name], TAU)
        torch.testing.assert_close(p, moved, rtol=1e-6, atol=1e-7)


@BOOTSTRAPPING
def test_pixels_the_target_encoder_sees_the_next_observation(kind):
    """With another target encoder the TD error is another one; with another encoder of s' nothing changes."""
    env = pixel_env()
    results = []
    for changed_encoder in (None, "target_encoder"):
        agent = make_agent(kind, env)
        batch = make_batch(agent, env)
        if changed_encoder:
            for p in agent.target_encoder.parameters():
                p.data.add_(0.1)
        torch.manual_seed(5)
        metrics = agent.update(batch, CRITIC)
        group = "q_action" if "q_action/td_error" in metrics.keys() else "q_noise"
        results.append((metrics[f"{group}/td_error"], metrics[f"{group}/q_mean"]))
    assert not torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("kind", [DSRLAWMLE, BestOfN])
def test_pixels_the_chunks_of_the_td_targets_are_drawn_by_the_target_encoder(kind):
    """Those that are drawn for several updates at once."""
    env, chunks = pixel_env(), []
    for changed_encoder in (None, "encoder", "target_encoder"):
        agent = make_agent(kind, env)
        transitions = make_transitions(agent, env)
        for p in getattr(agent, changed_encoder).parameters() if changed_encoder else ():
            p.data.add_(0.3 * torch.randn_like(p))
        torch.manual_seed(5)
        chunks.append(agent.prepare(transitions.unsqueeze(0))["next", "chunk"])
    assert torch.equal(chunks[0], chunks[1]) and not torch.equal(chunks[0], chunks[2])


def test_a_fixed_encoder_is_its_own_target(kind):
    agent = make_agent(kind)
    assert not agent.encoder.trainable and agent.target_encoder is agent.encoder


@pytest.mark.parametrize("exploration", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
def test_its_policies_read_the_stored_entries_and_write_noise_inside_the_bound(kind, make_env, exploration):
    env = make_env()
    agent = make_agent(kind, env)
    td = env.reset()
    for policy in (agent.policy, agent.kept_policy):
        assert set(policy.in_keys) <= set(agent.in_keys)
        with torch.no_grad(), set_exploration_type(exploration):
            out = policy(td.select(*agent.in_keys).clone())
        assert set(out.keys(True, True)) == {*agent.in_keys, *policy.out_keys}
        assert set(policy.out_keys) - {"action"} <= ({"sample_log_prob"} if kind.on_policy else set())
        assert out["action"].shape == (4, env.latent_dim)
        if kind not in UNBOUNDED:
            assert out["action"].abs().max() <= MAGNITUDE


@pytest.mark.parametrize("kind", WITH_ACTOR)
def test_acting_explores_and_its_mode_does_not(kind):
    env = state_env()
    agent = make_agent(kind, env)
    td = env.reset().select(*agent.in_keys)
    for exploration, same in ((ExplorationType.RANDOM, False), (ExplorationType.DETERMINISTIC, True)):
        with torch.no_grad(), set_exploration_type(exploration):
            first, second = (agent.policy(td.clone())["action"] for _ in range(2))
        assert torch.equal(first, second) is same


def test_it_says_what_a_noise_and_a_chunk_are_worth(kind, make_env):
    env = make_env()
    agent = make_agent(kind, env)
    td = env.reset().select(*agent.in_keys)
    noise = torch.randn(4, env.latent_dim)
    values = agent.noise_values(td, noise)
    assert values.shape == (1 if kind is PPO else 2, 4) and set(td.keys(True, True)) == set(agent.in_keys)
    chunk_values = agent.chunk_values(td, env.decoder.decode(td, noise))
    assert (chunk_values is None) == kind.reads_noise
    if chunk_values is not None:
        assert chunk_values.shape == (2, 4)


def test_only_those_that_say_so_read_the_noise_of_the_data(kind):
    agent = make_agent(kind)
    batch = make_batch(agent).exclude("action")
    if kind.reads_noise:
        with pytest.raises((AttributeError, KeyError, TypeError)):
            agent.update(batch, CRITIC | {"actor"})
    else:
        assert agent.update(batch, every_part(agent))["q_action/loss"].isfinite()


@pytest.mark.parametrize(
    ("alone", "interval", "due"), [(3, 1, [3, 4, 5, 6, 7]), (4, 2, [4, 6]), (3, 2, [4, 6]), (0, 5, [0, 5])]
)
def test_the_schedule_of_the_actor(kind, alone, interval, due):
    if kind is BestOfN:
        assert {make_agent(kind).parts(update) for update in range(5)} == {CRITIC}
        return
    agent = make_agent(kind, critic_only_updates=alone, actor_interval=interval)
    parts = [agent.parts(update) for update in range(8)]
    assert all("critic" in part for part in parts)
    assert [update for update, part in enumerate(parts) if "actor" in part] == due


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_kept_actor_is_the_average_of_the_actors_updates(average):
    agent = make_agent(DSRLAWMLE, actor_average=average)
    batch, seen = make_batch(agent), []
    first = [p.detach().clone() for p in agent.actor.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(first, agent.kept_policy.actor.parameters(), strict=True))
    for update in range(4):
        agent.update(batch, CRITIC | ({"actor"} if update else set()))
        if update:
            seen.append([p.detach().clone() for p in agent.actor.parameters()])
    expected = seen[0]
    for parameters in seen[1:]:
        expected = [average * old + (1 - average) * new for old, new in zip(expected, parameters, strict=True)]
    for kept, wanted in zip(agent.kept_policy.actor.parameters(), expected, strict=True):
        torch.testing.assert_close(kept, wanted)
        assert not average or not kept.requires_grad


def test_updates_share_what_is_prepared_at_once(kind):
    """The batches of several updates may be prepared together: each keeps its own transitions."""
    agent = make_agent(kind)
    transitions = make_transitions(agent, n=32)
    batches = agent.prepare(torch.stack([transitions[:16], transitions[16:]]))
    assert batches.shape == (2, 16)
    for i, batch in enumerate(batches.unbind(0)):
        assert torch.equal(batch["observation"], transitions["observation"][16 * i : 16 * (i + 1)])
        agent.update(batch, every_part(agent))
