"""What is saved of an agent comes back: whole, in parts, and with the optimisers bit for bit."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torchrl.data import Bounded

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLAWMLE, DSRLSAC
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import CheckpointError
from dsrl_torchrl.tensor_files import check_fit, load_tensors
from dsrl_torchrl.training.run_state import OptimiserState

from .cases import (
    AGENTS,
    GAMMA,
    MAGNITUDE,
    Leaning,
    changed,
    every_part,
    files,
    make_agent,
    make_batch,
    state,
)

ACTOR_FILES = {"actor", "kept_actor", "target_actor", "temperature", "multiplier"}


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
    assert {path.name for path in Path(tmp_path).iterdir()} == {f"{name}.safetensors" for name in saved} | {
        "agent.json"
    }
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


def test_all_that_is_learned_is_saved(kind, make_env, tmp_path):
    """Target networks and encoders, too: stage 2 goes on with them."""
    env = make_env()
    agent, other = trained(kind, env), make_agent(kind, env, seed=7)
    agent.save(tmp_path)
    other.load(tmp_path)
    mine, theirs = state(agent), state(other)
    assert mine.keys() == theirs.keys()
    assert {name for name in mine if not torch.equal(mine[name], theirs[name])} <= {"averaged"}  # a mark


@pytest.mark.parametrize("kind", [kind for kind in AGENTS if not kind.on_policy])  # whose critic is no ensemble
def test_files_that_do_not_fit_are_named(kind, tmp_path):
    trained(kind, None, updates=1).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"q_\w+\.safetensors does not fit.*should be \[3"):
        make_agent(kind, networks={"num_critics": 3}).load(tmp_path)
    path = next(tmp_path.glob("q_*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=rf"{path.name} is damaged: it has 100 bytes"):
        make_agent(kind).load(tmp_path)
    path.unlink()
    agent = make_agent(kind, seed=7)
    before = files(agent)
    with pytest.raises(CheckpointError, match=rf"cannot read .*{path.name}"):
        agent.load(tmp_path)
    assert not changed(before, files(agent))  # nor half loaded


def test_weights_that_mean_something_else_here_are_refused(tmp_path):
    """Their sizes fit: nothing else would tell."""
    trained(DSRLAWMLE, None, updates=1).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"its networks is \{'activation': 'tanh'.*'relu'"):
        make_agent(DSRLAWMLE, networks={"activation": "relu"}).load(tmp_path)
    policy = Leaning()
    env = LatentActionEnv(PointReachEnv(num_envs=4), policy, gamma=GAMMA, action_magnitude=2.0)
    with pytest.raises(CheckpointError, match=r"its action_magnitude is 1.5, here it is 2.0"):
        make_agent(DSRLAWMLE, env).load(tmp_path)
    policy.a.data.mul_(2)
    env = LatentActionEnv(PointReachEnv(num_envs=4), policy, gamma=GAMMA, action_magnitude=MAGNITUDE)
    with pytest.raises(CheckpointError, match="its base_policy is"):
        make_agent(DSRLAWMLE, env).load(tmp_path)


def test_entries_in_another_order_are_refused(tmp_path):
    """Two cameras have encoders of the same sizes."""
    policy, cameras = Leaning(), {"left": (3, 16, 16), "right": (3, 16, 16)}

    class TwoCameras(PointReachEnv):
        def __init__(self) -> None:
            super().__init__(num_envs=2)
            for key, shape in cameras.items():
                self.observation_spec[key] = Bounded(0, 255, (2, *shape), dtype=torch.uint8)

    env = LatentActionEnv(TwoCameras(), policy, gamma=GAMMA, action_magnitude=MAGNITUDE)
    make_agent(DSRLSAC, env, networks={"in_keys": ["left", "right"]}).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"its entries is \['left', 'right'\], here it is \['right', 'left'\]"):
        make_agent(DSRLSAC, env, networks={"in_keys": ["right", "left"]}).load(tmp_path)


def test_what_is_not_finite_is_neither_saved_nor_loaded(tmp_path):
    agent = trained(DSRLAWMLE, None, updates=1)
    path = agent.save(tmp_path)[1]
    record, name = load_tensors(path), next(iter(agent.tensors()["actor"]))
    agent.tensors()["actor"][name].data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        agent.save(tmp_path)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        check_fit({name: torch.full_like(value, torch.inf) for name, value in record.items()}, record, path)


def test_an_exact_resume_goes_on_bit_for_bit(kind, make_env):
    env = make_env()
    agent = trained(kind, env)
    other = make_agent(kind, env, seed=7)
    other.load_state_dict(agent.state_dict())
    OptimiserState(other.optimisers).load_state_dict(deepcopy(OptimiserState(agent.optimisers).state_dict()))
    batch = make_batch(agent, env)
    for learner in (agent, other):
        torch.manual_seed(5)
        learner.update(batch, every_part(agent))
    first, second = state(agent), state(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items())


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


def test_critics_alone_start_no_average(tmp_path):
    """The actor is a new one: its average begins with its first update, not with what it was before."""
    agent, other = make_agent(DSRLAWMLE, actor_average=0.9), make_agent(DSRLAWMLE, seed=7, actor_average=0.9)
    batch = make_batch(agent)
    agent.update(batch, every_part(agent))
    agent.save(tmp_path)
    other.load(tmp_path, components=("critics",))
    other.update(batch, every_part(other))
    for kept, new in zip(other.kept_policy.actor.parameters(), other.actor.parameters(), strict=True):
        assert torch.equal(kept, new)
