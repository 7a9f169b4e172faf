"""Stage 2 on a task whose optimum is known in closed form, and its checkpoints."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.errors import CheckpointError, NonFiniteError, UserError
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.policies import BasePolicy
from dsrl_torchrl.training.latent_networks import load_actor, save_actor
from dsrl_torchrl.training.network_config import NetworkConfig
from dsrl_torchrl.training.online import train_stage2
from dsrl_torchrl.training.stage2_config import Stage2Config
from dsrl_torchrl.training.update import LatentUpdate
from dsrl_torchrl.envs.toy import PointReachEnv, optimal_steps


class NoiseIsAction(BasePolicy):
    """The policy that can do everything and wants nothing: chunk = noise / 1.5."""

    def __init__(self) -> None:
        super().__init__(observation_dim=2, action_dim=2, pred_horizon=2)
        self.freeze()

    def forward(self, observation, noise):
        return noise / 1.5


def make_env(gamma=0.9, **options):
    return LatentActionEnv(
        PointReachEnv(num_envs=8, max_episode_steps=20, **options),
        NoiseIsAction(),
        gamma=gamma,
        noise_layout="repeat",
        action_magnitude=1.5,
    )


def config(**options):
    small = {
        "total_env_steps": 800,
        "warmup_env_steps": 200,
        "macro_steps_per_round": 16,
        "utd": 1,
        "critic_only_updates": 10,
        "batch_size": 32,
        "replay_size": 2000,
        "checkpoint_env_steps": 200,
        "log_env_steps": 50,
        "gamma": 0.9,
        "noise_aliasing": False,
        "aw_mle": False,
        "actor_interval": 1,
        "init_actor": False,
        "init_critics": False,
        "offline_fraction": 0.0,
    }
    return Stage2Config(**(small | options))


SMALL = NetworkConfig(num_cells=(16, 16), activation="tanh")


@pytest.mark.parametrize("noise_aliasing", [False, True], ids=["sac", "na"])
def test_the_known_optimum_is_reached(tmp_path, noise_aliasing):
    settings = config(
        total_env_steps=8_000, warmup_env_steps=1_000, utd=1, batch_size=128, replay_size=20_000,
        actor_lr=1e-3, critic_lr=1e-3, tau=0.02, checkpoint_env_steps=8_000, noise_aliasing=noise_aliasing,
    )  # fmt: skip
    networks = NetworkConfig(num_cells=(64, 64))
    result = train_stage2(make_env(), settings, networks, seed=0, folder=tmp_path, progress=False)
    env = make_env(gamma=1.0)
    seeds = range(500, 564)
    learned = evaluate(env, result.actor, seeds, deterministic=True)
    base = evaluate(env, PriorNoise(2), seeds)
    optimum = torch.cat(
        [optimal_steps(env.reset(seed=list(seeds[i : i + 8]))["observation"], torch.zeros(2)) for i in range(0, 64, 8)]
    )
    # Lengths are whole macro steps of 2; an optimal controller needs `rounded` on average.
    rounded = (2 * torch.ceil(optimum / 2)).mean().item()
    assert learned.success_once.value == 1.0
    assert learned.length_mean <= 1.15 * rounded
    assert base.success_once.value < 0.7


class Killed(Exception):
    pass


def run(folder, resume=False, kill_at=None, make_worker_env=None, **options):
    rows = []

    def make_log(keep_until):
        def log(step, metrics):
            if kill_at is not None and step >= kill_at:
                raise Killed
            rows.append((step, metrics))

        return log

    result = train_stage2(
        make_env(), config(**options), SMALL, seed=3, folder=folder, make_worker_env=make_worker_env, resume=resume,
        make_log=make_log, progress=False,
    )  # fmt: skip
    return result, rows


@pytest.mark.parametrize("noise_aliasing", [False, True], ids=["sac", "na"])
def test_kill_and_resume_equals_the_uninterrupted_run(tmp_path, noise_aliasing):
    whole, rows = run(tmp_path / "whole", noise_aliasing=noise_aliasing)
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=550, noise_aliasing=noise_aliasing)
    resumed, resumed_rows = run(tmp_path / "killed", resume=True, noise_aliasing=noise_aliasing)
    assert (resumed.env_steps, resumed.updates) == (whole.env_steps, whole.updates)
    for name, value in whole.actor.state_dict().items():
        assert torch.equal(resumed.actor.state_dict()[name], value), name
    assert resumed_rows == rows[-len(resumed_rows) :]
    assert 0 < len(resumed_rows) < len(rows)


def test_an_overlapped_run_is_counted_exactly_and_resumes(tmp_path):
    """Killed between two checkpoints: no step of the last one is lost, and the totals are those of a whole run."""
    with pytest.raises(Killed):
        run(tmp_path, kill_at=550, make_worker_env=make_env, utd=1.5)
    assert not multiprocessing.active_children()
    result, rows = run(tmp_path, resume=True, make_worker_env=make_env, utd=1.5)
    assert not multiprocessing.active_children()
    assert 400 <= rows[0][0] < 550  # from the checkpoint on
    assert 800 <= result.env_steps <= 800 + 16 * 2  # less than a batch beyond the total
    assert result.updates == int(1.5 * result.macro_steps)
    assert rows[-1][1]["replay_buffer/size"] == result.macro_steps
    assert rows[-1][1]["env/episodes"] > 0


def test_a_prior_candidate_actor_has_no_temperature(tmp_path):
    result, rows = run(tmp_path, noise_aliasing=True, aw_mle=True, m_candidates=8)
    assert result.updates > 0
    assert {"aw_mle/loss", "aw_mle/advantage"} <= rows[-1][1].keys()
    assert "sac/alpha" not in rows[-1][1]


def test_utd_is_counted_exactly(tmp_path):
    result, rows = run(tmp_path)
    assert rows[-1][1]["train/utd"] == pytest.approx(1.0, abs=0.02)
    assert result.updates == result.macro_steps > 0


def test_everything_that_must_be_logged_is(tmp_path):
    _, rows = run(tmp_path)
    wanted = {
        "sac/alpha", "sac/q_mean", "sac/q_std", "sac/td_error", "actor/policy_entropy", "train/utd", "sac/critic_loss",
        "sac/actor_loss", "sac/alpha_loss", "critic/grad_norm", "actor/grad_norm", "replay_buffer/size",
        "replay_buffer/utilization", "env/success_running", "env/return", "env/episode_len",
    }  # fmt: skip
    assert wanted <= rows[-1][1].keys()


def test_nan_rewards_are_named_and_the_last_checkpoint_stays(tmp_path):
    env = make_env()
    base, steps = env.base_env.base_env, 0
    advance = base._advance

    def poisoned(action):
        nonlocal steps
        steps += 1
        observation, success, reward, terminated, truncated = advance(action)
        return observation, success, reward * (float("nan") if steps > 50 else 1.0), terminated, truncated

    base._advance = poisoned
    with pytest.raises(NonFiniteError, match=r"next\.reward is NaN or infinite at env step \d+"):
        train_stage2(env, config(), SMALL, seed=0, folder=tmp_path, progress=False)
    assert len(list((tmp_path / "checkpoints").iterdir())) >= 1


@pytest.mark.parametrize("make_worker_env", [None, make_env], ids=["in turn", "overlapped"])
def test_nan_losses_are_named(tmp_path, make_worker_env):
    with pytest.raises(NonFiniteError, match=r"sac/.* at update"):
        run(tmp_path, make_worker_env=make_worker_env, critic_lr=1e30)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"utd": 0.5}, "utd"),
        ({"batch_size": 0}, "batch_size"),
        ({"tau": 0.0}, "tau"),
        ({"warmup_env_steps": 900}, "warmup_env_steps"),
        ({"offline_fraction": 1.0}, "offline_fraction"),
        ({"gamma": 0.0}, "gamma"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        config(**options)


def test_actor_round_trip_and_damage(tmp_path):
    result, _ = run(tmp_path)
    save_actor(result.actor, tmp_path)
    again = load_actor(make_env(), SMALL, tmp_path)
    for name, value in result.actor.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    path = tmp_path / "actor.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"actor\.safetensors"):
        load_actor(make_env(), SMALL, tmp_path)


def test_the_kept_actor_is_the_average_of_the_actors_updates(tmp_path, monkeypatch):
    seen = []
    original = LatentUpdate.forward

    def watched(self, batch, *, update_actor=True, distil=True):
        out = original(self, batch, update_actor=update_actor, distil=distil)
        if update_actor:
            seen.append(torch.cat([p.detach().flatten().clone() for p in self._actor_params]))
        return out

    monkeypatch.setattr(LatentUpdate, "forward", watched)
    result, _ = run(tmp_path, actor_average=0.9)
    expected = seen[0]
    for parameters in seen[1:]:
        expected = 0.9 * expected + 0.1 * parameters
    kept = torch.cat([p.detach().flatten() for p in result.actor.parameters()])
    assert kept.shape == expected.shape and not torch.equal(expected, seen[-1])
    torch.testing.assert_close(kept.sort()[0], expected.sort()[0])  # the two orders of the parameters may differ
