"""What every algorithm promises to the loops: what an update moves, what it logs, what is saved."""

from __future__ import annotations

import inspect
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules.distributions import continuous

import dsrl_torchrl.agents as agents
from dsrl_torchrl.agents import DSRLAWMLE, DSRLNA, DSRLSAC, TD3, BestOfN
from dsrl_torchrl.errors import CheckpointError, UserError
from dsrl_torchrl.options import Options

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
    state,
    state_env,
)  # fmt: skip

CRITIC = frozenset({"critic"})
WITH_ACTOR = [kind for kind in AGENTS if kind is not BestOfN]
ACTOR_FILES = {"actor", "kept_actor", "target_actor"}


@pytest.fixture(params=AGENTS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture(params=["state", "pixels"])
def make_env(request):
    return state_env if request.param == "state" else pixel_env


def test_metrics_are_finite_scalars_by_the_names_that_figures_and_checks_read(kind, make_env):
    env = make_env()
    agent = make_agent(kind, env)
    metrics = agent.update(make_batch(agent, env), every_part(agent))
    assert metrics.batch_size == torch.Size([])
    for name, value in metrics.items():
        assert value.shape == () and value.isfinite() and not value.requires_grad, name
        assert name.split("/")[0] in ("q_action", "q_noise", "actor")
    td = "q_noise" if kind.reads_noise else "q_action"
    assert {f"{td}/{name}" for name in ("loss", "td_error", "q_mean", "q_std", "grad_norm")} <= set(metrics.keys())
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
    assert moved >= {name for name in before if name.startswith("q_") and name != "q_noise"}
    actors = {"actor", "kept_actor"} if kind in WITH_ACTOR else set()
    assert changed(files(agent), files(twin)) - {"target_actor"} == actors


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
        assert set(out.keys(True, True)) == {*agent.in_keys, "action"}
        assert out["action"].shape == (4, env.latent_dim)
        if kind is not BestOfN:  # whose candidates are the prior's
            assert out["action"].abs().max() <= MAGNITUDE


def test_it_says_what_a_noise_and_a_chunk_are_worth(kind, make_env):
    env = make_env()
    agent = make_agent(kind, env)
    td = env.reset().select(*agent.in_keys)
    noise = torch.randn(4, env.latent_dim)
    values = agent.noise_values(td, noise)
    assert values.shape == (2, 4) and set(td.keys(True, True)) == set(agent.in_keys)
    chunk_values = agent.chunk_values(td, env.decoder.decode(td, noise))
    assert (chunk_values is None) == kind.reads_noise
    if chunk_values is not None:
        assert chunk_values.shape == (2, 4)


def test_only_those_that_say_so_read_the_noise_of_the_data(kind):
    agent = make_agent(kind)
    batch = make_batch(agent).exclude("action")
    if kind.reads_noise:
        with pytest.raises((AttributeError, KeyError, TypeError)):
            agent.update(batch, CRITIC)
    else:
        assert agent.update(batch, every_part(agent))["q_action/loss"].isfinite()


def test_the_schedule_of_the_actor(kind):
    if kind is BestOfN:
        assert {make_agent(kind).parts(update) for update in range(5)} == {CRITIC}
        return
    agent = make_agent(kind, critic_only_updates=3, actor_interval=2)
    parts = [agent.parts(update) for update in range(9)]
    assert all("critic" in part for part in parts)
    assert ["actor" in part for part in parts] == [update >= 3 and update % 2 == 0 for update in range(9)]


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


def test_an_average_goes_on_where_it_was_saved(tmp_path):
    """Stage 2 goes on with what stage 1 kept: the first update moves it by 1 - ρ."""
    agent, other = make_agent(DSRLAWMLE, actor_average=0.9), make_agent(DSRLAWMLE, seed=7, actor_average=0.9)
    batch = make_batch(agent)
    for _ in range(3):
        agent.update(batch, every_part(agent))
    agent.save(tmp_path)
    other.load(tmp_path)
    before = [p.detach().clone() for p in other.kept_policy.actor.parameters()]
    other.update(batch, every_part(other))
    for old, kept, new in zip(before, other.kept_policy.actor.parameters(), other.actor.parameters(), strict=True):
        torch.testing.assert_close(kept, 0.9 * old + 0.1 * new)


def trained(kind, env, updates=3, seed=0):
    agent = make_agent(kind, env, seed)
    for _ in range(updates):
        agent.update(make_batch(agent, env), every_part(agent))
    return agent


def test_saved_components_come_back(kind, make_env, tmp_path):
    env = make_env()
    agent = trained(kind, env)
    agent.save(tmp_path)
    saved = files(agent)
    assert {path.stem for path in Path(tmp_path).iterdir()} == set(saved)
    whole = make_agent(kind, env, seed=7)
    whole.load(tmp_path)
    assert not changed(saved, files(whole))
    td, w = env.reset().select(*agent.in_keys), torch.randn(4, env.latent_dim)
    torch.testing.assert_close(whole.noise_values(td, w), agent.noise_values(td, w), rtol=0, atol=0)
    part = make_agent(kind, env, seed=7)
    part.load(tmp_path, components=("critics",))
    assert changed(saved, files(part)) == set(saved) & ACTOR_FILES
    torch.testing.assert_close(part.noise_values(td, w), agent.noise_values(td, w), rtol=0, atol=0)
    none = make_agent(kind, env, seed=7)
    before = files(none)
    none.load(tmp_path, components=())
    assert not changed(before, files(none))


def test_files_that_do_not_fit_are_named(kind, tmp_path):
    trained(kind, None, updates=1).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"q_\w+\.safetensors does not fit.*should be \[3"):
        make_agent(kind, networks={"num_critics": 3}).load(tmp_path)
    path = next(tmp_path.glob("q_*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=rf"cannot read .*{path.name}"):
        make_agent(kind).load(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"cannot read .*{path.name}"):
        make_agent(kind).load(tmp_path, components=("critics",))


def test_an_exact_resume_goes_on_bit_for_bit(kind, make_env):
    env = make_env()
    agent = trained(kind, env)
    other = make_agent(kind, env, seed=7)
    other.load_state_dict(agent.state_dict())
    other.optimiser_state().load_state_dict(deepcopy(agent.optimiser_state().state_dict()))
    batch = make_batch(agent, env)
    for learner in (agent, other):
        torch.manual_seed(5)
        learner.update(batch, every_part(agent))
    first, second = state(agent), state(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_updates_share_what_is_prepared_at_once(kind):
    """The batches of several updates may be prepared together: each keeps its own transitions."""
    agent = make_agent(kind)
    transitions = make_transitions(agent, n=32)
    batches = agent.prepare(torch.stack([transitions[:16], transitions[16:]]))
    assert batches.shape == (2, 16)
    for i, batch in enumerate(batches.unbind(0)):
        assert torch.equal(batch["observation"], transitions["observation"][16 * i : 16 * (i + 1)])
        agent.update(batch, every_part(agent))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size should be greater than or equal to 1, got 0"),
        ({"gamma": 1.5}, "gamma"),
        ({"tau": 0.0}, "tau"),
        ({"critic_lr": float("inf")}, "critic_lr"),
        ({"critic_lr": "fast"}, "critic_lr"),
        ({"compile": "yes"}, "compile"),
        ({"batchsize": 16}, "unknown option batchsize"),
    ],
)
def test_bad_options_are_one_line(kind, options, message):
    with pytest.raises(UserError, match=message) as error:
        kind.Config(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DSRLNA, {"alpha_init": 0.0}),
        (DSRLNA, {"alpha_parameterisation": "exp"}),
        (DSRLNA, {"backup": "max"}),
        (DSRLNA, {"actor_average": 1.0}),
        (DSRLNA, {"m_candidates": 8}),
        (DSRLSAC, {"alpha_lr": -1.0}),
        (DSRLAWMLE, {"m_candidates": 1}),
        (DSRLAWMLE, {"beta_latent": 0.0}),
        (DSRLAWMLE, {"executed_share": 1.5}),
        (DSRLAWMLE, {"alpha_init": 0.1}),
        (TD3, {"noise_clip": 0.0}),
        (TD3, {"actor_interval": 0}),
        (BestOfN, {"candidates": 0}),
        (BestOfN, {"actor_lr": 1e-3}),
    ],
)
def test_bad_options_of_an_algorithm(kind, options):
    with pytest.raises(UserError, match=next(iter(options))) as error:
        kind.Config(**options)
    assert "\n" not in str(error.value)


def test_another_algorithms_config_is_refused(kind):
    for other in AGENTS:
        if other is not kind:
            with pytest.raises(UserError, match=f"{kind.__name__} takes its own Config, got {other.__name__}.Config"):
                kind(state_env(), other.Config())


def test_every_option_says_what_it_means(kind):
    assert all(field.description for field in kind.Config.model_fields.values())
    assert issubclass(kind.Config, Options)


def test_an_algorithm_is_a_short_file():
    for module in {inspect.getmodule(kind) for kind in AGENTS} | {inspect.getmodule(agents.Agent)}:
        assert len(inspect.getsource(module).splitlines()) <= 250
    assert len(inspect.getsource(inspect.getmodule(TD3)).splitlines()) <= 150
