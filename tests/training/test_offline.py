"""Stage 1 on a task whose optimum is known, its transfer into stage 2, and its checkpoints."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.training.latent_networks import load_actor, make_actor
from dsrl_torchrl.training.learner import make_update, save_learner
from dsrl_torchrl.training.network_config import NetworkConfig
from dsrl_torchrl.collect.rollouts import collect_rollouts
from dsrl_torchrl.training.offline import train_stage1
from dsrl_torchrl.training.stage1_config import Stage1Config
from dsrl_torchrl.training.online import train_stage2

from tests.training.test_online import SMALL, Killed, make_env
from tests.training.test_online import config as stage2_config

NETWORKS = NetworkConfig(num_cells=(64, 64))


def config(**options):
    small = {
        "updates": 60,
        "critic_only_updates": 10,
        "batch_size": 32,
        "gamma": 0.9,
        "log_updates": 10,
        "checkpoint_updates": 20,
        "m_candidates": 8,
    }
    return Stage1Config(**(small | options))


@pytest.fixture(scope="module")
def rollouts():
    data, rate = collect_rollouts(make_env(), PriorNoise(2), 3_000, seed=1, progress=False)
    assert 0 < rate.value < 0.8
    assert int(data["next", "macro_steps"].sum()) >= 3_000
    return data


@pytest.mark.parametrize(
    "switches", [{}, {"aw_mle": False}, {"use_na": False}], ids=["na-aw_mle", "na-sac_actor", "td_on_noise-aw_mle"]
)
def test_the_offline_policy_beats_the_prior_by_its_critic_and_in_the_env(tmp_path, rollouts, switches):
    settings = config(
        updates=900, critic_only_updates=200, actor_interval=2, batch_size=128, actor_lr=2e-3, critic_lr=2e-3, tau=0.02,
        beta_latent=3.0, tau_baseline=0.3, m_candidates=32, log_updates=100, **switches,
    )  # fmt: skip
    result = train_stage1(make_env(), rollouts, settings, NETWORKS, seed=0, folder=tmp_path, progress=False)
    assert result.q_gain > 4 * result.q_gain_stderr
    seeds = range(500, 564)
    steered = evaluate(make_env(), result.actor, seeds)
    base = evaluate(make_env(), PriorNoise(2), seeds)
    assert steered.success_once.low > base.success_once.value + 0.1


def test_noise_of_the_data_is_not_read(tmp_path, rollouts):
    """Demonstrations have none: NA must give the same result without it."""
    actors = []
    for name, data in (("with", rollouts), ("without", rollouts.exclude("action"))):
        result = train_stage1(make_env(), data, config(), SMALL, seed=0, folder=tmp_path / name, progress=False)
        actors.append(result.actor.state_dict())
    assert all(torch.equal(actors[0][key], actors[1][key]) for key in actors[0])


def test_no_env_step_is_made(tmp_path, rollouts):
    env = make_env()
    env.base_env.base_env._advance = None
    train_stage1(env, rollouts, config(), SMALL, seed=0, folder=tmp_path, progress=False)


def run(folder, data, resume=False, kill_at=None):
    rows = []

    def make_log(keep_until):
        def log(step, metrics):
            if step == kill_at:
                raise Killed
            rows.append((step, metrics))

        return log

    result = train_stage1(
        make_env(), data, config(), SMALL, seed=0, folder=folder, resume=resume, make_log=make_log, progress=False
    )
    return result, rows


def test_kill_and_resume_equals_the_uninterrupted_run(tmp_path, rollouts):
    whole, rows = run(tmp_path / "whole", rollouts)
    with pytest.raises(Killed):
        run(tmp_path / "killed", rollouts, kill_at=50)
    resumed, resumed_rows = run(tmp_path / "killed", rollouts, resume=True)
    for name, value in whole.actor.state_dict().items():
        assert torch.equal(resumed.actor.state_dict()[name], value), name
    assert resumed_rows == rows[-2:]
    assert {"stage1/q_prior", "stage1/q_policy", "sac/td_error", "noise_aliasing/loss"} <= rows[-1][1].keys()


def test_stage2_starts_from_actor_and_critics(tmp_path, rollouts):
    """One env step of warm-up and no update: what comes out is what stage 1 put in."""
    env = make_env()
    result, _ = run(tmp_path / "stage1", rollouts)
    options = {"noise_aliasing": True, "offline_fraction": 0.5, "critic_only_updates": 10_000}
    seen = {}
    for name, init in (("warm", True), ("cold", False)):
        online = train_stage2(
            env,
            stage2_config(total_env_steps=260, init_actor=init, init_critics=init, **options),
            SMALL,
            seed=5,
            folder=tmp_path / name,
            stage1=tmp_path / "stage1",
            offline=rollouts.exclude("action"),
            progress=False,
        )
        seen[name] = online.actor.state_dict()
        assert online.updates > 0
    same = {n: all(torch.equal(s[k], result.actor.state_dict()[k]) for k in s) for n, s in seen.items()}
    assert same == {"warm": True, "cold": False}


def test_saved_critics_come_back(tmp_path):
    from dsrl_torchrl.errors import CheckpointError
    from dsrl_torchrl.training.learner import load_learned_critics

    env = make_env()

    def fresh(noise_aliasing=True, networks=SMALL):
        return make_update(env, make_actor(env, networks), config(), networks, noise_aliasing=noise_aliasing)

    update = fresh()
    save_learner(update, make_actor(env, SMALL), tmp_path)
    other, sac = fresh(), fresh(noise_aliasing=False)
    load_learned_critics(other, tmp_path)
    load_learned_critics(sac, tmp_path)  # plain SAC takes Q^W alone, as its targets too
    for module in (
        other.sac.qvalue_network_params,
        sac.sac.qvalue_network_params,
        sac.sac.target_qvalue_network_params,
    ):
        for key, value in update.sac.qvalue_network_params.items(True, True):
            assert torch.equal(module[key], value)
    for key, value in update.action_value.target_action_value_network_params.items(True, True):
        assert torch.equal(other.action_value.target_action_value_network_params[key], value)
    with pytest.raises(CheckpointError, match=r"q_noise\.safetensors does not fit .* should be \[3"):
        load_learned_critics(fresh(networks=NetworkConfig(num_critics=3, num_cells=(16, 16))), tmp_path)
    with pytest.raises(CheckpointError, match=r"actor\.safetensors does not fit"):
        load_actor(env, NETWORKS, tmp_path)


def test_nan_losses_are_named(tmp_path, rollouts):
    with pytest.raises(NonFiniteError, match="at stage 1 update"):
        train_stage1(make_env(), rollouts, config(critic_lr=1e30), SMALL, seed=0, folder=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"updates": 0}, "updates"),
        ({"critic_only_updates": 60}, "critic_only_updates"),
        ({"rollout_env_steps": -1}, "rollout_env_steps"),
        ({"batch_size": "many"}, "batch_size must be a number"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        config(**options)
