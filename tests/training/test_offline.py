"""Stage 1 on a task whose optimum is known, its check, its transfer into stage 2, and its checkpoints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.collect.rollouts import collect_rollouts
from dsrl_torchrl.errors import CheckpointError, NonFiniteError, UserError
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.training.offline import OfflineConfig, check_gain
from tests.training.toy import (
    AGENTS,
    DSRLAWMLE,
    DSRLNA,
    DSRLSAC,
    TD3,
    BestOfN,
    Killed,
    assert_same_state,
    make_agent,
    make_env,
    run_offline,
    run_online,
)


@pytest.fixture(scope="module")
def rollouts():
    env = make_env(num_envs=32)
    data, episodes = collect_rollouts(
        env, PriorNoise(2), 3_000, seed=1, observation_keys=["observation"], progress=False
    )
    assert 0 < episodes.metrics()["env/success_running"] < 0.8
    assert int(data["next", "chunk_steps"].sum()) >= 3_000
    return data


@pytest.mark.slow
@pytest.mark.parametrize("kind", AGENTS)
def test_the_offline_policy_beats_the_prior_by_its_critic_and_in_the_env(tmp_path, rollouts, kind):
    agent = make_agent(
        kind, num_cells=(64, 64), batch_size=128, critic_only_updates=200, actor_interval=2, critic_lr=2e-3,
        actor_lr=3e-4 if kind is TD3 else 2e-3, actor_average=0.9, tau=0.02, m_candidates=32, distillation_interval=1,
    )  # fmt: skip
    result, _ = run_offline(agent, rollouts, tmp_path, updates=700, log_updates=100, checkpoint_updates=700, seed=0)
    assert result.q_gain > 4 * result.q_gain_stderr
    seeds = range(500, 564)
    env = make_env(num_envs=32)
    steered = evaluate(env, agent.kept_policy, seeds)
    assert steered.success_once.low > evaluate(env, PriorNoise(2), seeds).success_once.value + 0.1


class Ranked(SimpleNamespace):
    """In the place of an agent: ``Q(s, w) = -|w|²`` and, in another member, 1 more; the policy acts by zero noise."""

    device = torch.device("cpu")
    decoder = SimpleNamespace(latent_dim=3, base_policy=None, device=torch.device("cpu"))

    def policy(self, observations):
        return observations.set("action", torch.zeros(len(observations), 3))

    def noise_values(self, observations, noise):
        q = -noise.square().sum(-1)
        return torch.stack([q + 1, q])


def test_the_gain_is_the_mean_difference_and_its_standard_error():
    """``|w|²`` is a chi-square of 3 degrees: mean 3, variance 6."""
    observations, state = TensorDict({"observation": torch.zeros(40_000, 2)}, [40_000]), torch.get_rng_state()
    gain = check_gain(Ranked(), observations)
    assert gain["q_policy"] == 0.0
    assert gain["q_prior"] == pytest.approx(-3.0, abs=5 * (6 / 40_000) ** 0.5)
    assert gain["q_gain"] == pytest.approx(-gain["q_prior"], rel=1e-5)
    assert gain["q_gain_stderr"] == pytest.approx((6 / 40_000) ** 0.5, rel=0.05)
    assert check_gain(Ranked(), observations) == gain
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", [kind for kind in AGENTS if not kind.reads_noise])
def test_noise_of_the_data_is_not_read(tmp_path, rollouts, kind):
    """Demonstrations have none: the result must be the same without it."""
    agents = [make_agent(kind) for _ in range(2)]
    for agent, data in zip(agents, (rollouts, rollouts.exclude("action")), strict=True):
        run_offline(agent, data, tmp_path / str(len(data.keys())), updates=20)
    assert_same_state(*agents)


def test_the_data_stays_as_it_was(tmp_path, rollouts):
    before = rollouts.clone()
    run_offline(make_agent(DSRLAWMLE), rollouts, tmp_path, updates=2)
    assert set(rollouts.keys(True, True)) == set(before.keys(True, True))
    assert (rollouts == before).all()


def test_no_env_step_is_made(tmp_path, rollouts):
    env = make_env()
    env.base_env.base_env._advance = None
    run_offline(make_agent(DSRLAWMLE, env=env), rollouts, tmp_path, updates=20)


@pytest.mark.parametrize("kind", AGENTS)
def test_kill_and_resume_equals_the_uninterrupted_run(tmp_path, rollouts, kind):
    whole, killed, resumed = (make_agent(kind, actor_interval=2, critic_only_updates=4) for _ in range(3))
    result, rows = run_offline(whole, rollouts, tmp_path / "whole")
    with pytest.raises(Killed):
        run_offline(killed, rollouts, tmp_path / "killed", kill_at=50)
    again, resumed_rows = run_offline(resumed, rollouts, tmp_path / "killed", resume=True)
    assert_same_state(resumed, whole)
    assert resumed_rows == rows[-2:]
    assert (again.updates, again.q_gain, again.q_gain_stderr) == (60, result.q_gain, result.q_gain_stderr)
    assert {"stage1/q_prior", "stage1/q_policy", "stage1/q_gain", "stage1/q_gain_stderr"} <= rows[-1][1].keys()
    assert {metric for metrics, _ in kind.panels for metric in metrics} <= rows[-1][1].keys()


def test_a_run_of_other_options_is_not_gone_on_with(tmp_path, rollouts, recwarn):
    with pytest.raises(Killed):
        run_offline(make_agent(DSRLSAC), rollouts, tmp_path, kill_at=50)
    for other in ({"seed": 4}, {"key": "other"}, {"checkpoint_updates": 10}):
        with pytest.raises(CheckpointError, match="no checkpoint of this run is left"):
            run_offline(make_agent(DSRLSAC), rollouts, tmp_path, resume=True, **other)
    with pytest.raises(CheckpointError, match="no checkpoint of this run is left"):
        run_offline(make_agent(DSRLSAC, critic_lr=1e-5), rollouts, tmp_path, resume=True)
    assert run_offline(make_agent(DSRLSAC), rollouts, tmp_path, resume=True)[0].updates == 60


@pytest.fixture(scope="module", params=AGENTS)
def stage1(request, rollouts, tmp_path_factory):
    """A saved stage 1 of every algorithm: the agent and its folder."""
    folder, agent = tmp_path_factory.mktemp("stage1"), make_agent(request.param, critic_only_updates=4)
    run_offline(agent, rollouts, folder, updates=12)
    agent.save(folder)
    return agent, folder


def is_critic(name):
    return name.startswith("q_")


@pytest.mark.parametrize("components", [(), ("actor",), ("critics",), ("actor", "critics")], ids="+".join)
def test_stage_2_starts_with_what_it_takes_from_stage_1(tmp_path, rollouts, stage1, components):
    """Env steps but no update: what comes out is what stage 1 put in."""
    (first, folder), kind = stage1, type(stage1[0])
    agent = make_agent(kind, seed=5, final_spread=1.0)
    agent.load(folder, components)
    fresh = {name: dict(tensors) for name, tensors in make_agent(kind, seed=5).tensors().items()}
    options = {"total_env_steps": 40, "warmup_env_steps": 0, "utd": 1e-6}
    result, _ = run_online(agent, tmp_path, offline=rollouts, **options)
    assert result.env_steps >= 40 and result.updates == 0
    for name, tensors in agent.tensors().items():
        taken = ("critics" if is_critic(name) else "actor") in components
        source = first.tensors()[name] if taken else fresh[name]
        assert all(torch.equal(tensors[key], source[key]) for key in source), name
        assert any(not torch.equal(fresh[name][key], first.tensors()[name][key]) for key in source), name


@pytest.mark.parametrize(("kind", "critic"), [(DSRLSAC, "q_noise"), (DSRLNA, "q_action"), (BestOfN, "q_action")])
def test_nan_losses_are_named(tmp_path, rollouts, kind, critic):
    with pytest.raises(NonFiniteError, match=rf"{critic}/.* at update"):
        run_offline(make_agent(kind, critic_lr=1e9), rollouts, tmp_path)


@pytest.mark.parametrize("name", ["updates", "checkpoint_updates", "log_updates"])
@pytest.mark.parametrize("value", [0, 1.5, "many"])
def test_bad_options(name, value):
    with pytest.raises(UserError, match=name):
        OfflineConfig(**{name: value})
