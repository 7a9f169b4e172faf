"""LP-DS and LPS in the online loop: a killed run goes on bit for bit, and what pays is found."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLAWMLE, LPDS, LPS
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.noise_subspace import NoiseSubspace
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from tests.training.toy import (
    FULL_SPEED,
    GAMMA,
    Killed,
    NoiseIsAction,
    assert_same_state,
    make_agent,
    make_env,
    run_online,
)


@pytest.mark.parametrize("kind", [LPDS, LPS])
def test_kill_and_resume_equals_the_uninterrupted_run(tmp_path, kind):
    small = {"total_env_steps": 200, "warmup_env_steps": 60, "checkpoint_env_steps": 50, "log_env_steps": 1, "utd": 0.5}
    whole, killed, resumed = (make_agent(kind, batch_size=8, critic_only_updates=1) for _ in range(3))
    _, rows = run_online(whole, tmp_path / "whole", **small)
    with pytest.raises(Killed):
        run_online(killed, tmp_path / "killed", **small, kill_at=140)
    _, resumed_rows = run_online(resumed, tmp_path / "killed", **small, resume=True)
    assert_same_state(resumed, whole)
    assert resumed_rows == rows[-len(resumed_rows) :]


def test_the_rest_of_a_subspaces_noise_is_drawn_again_as_it_was(tmp_path):
    """It comes from the generator that a checkpoint keeps."""
    small = {"total_env_steps": 200, "warmup_env_steps": 60, "checkpoint_env_steps": 50, "log_env_steps": 1, "utd": 0.5}

    def make():
        env = LatentActionEnv(
            PointReachEnv(num_envs=8, max_episode_steps=20), NoiseIsAction(), gamma=GAMMA, noise_layout="repeat",
            action_magnitude=FULL_SPEED, subspace=NoiseSubspace(torch.tensor([[0.6], [0.8]])),
        )  # fmt: skip
        return {"agent": make_agent(DSRLAWMLE, env=env, batch_size=8, critic_only_updates=1), "env": env}

    whole, killed, resumed = make(), make(), make()
    run_online(**whole, folder=tmp_path / "whole", **small)
    with pytest.raises(Killed):
        run_online(**killed, folder=tmp_path / "killed", **small, kill_at=140)
    run_online(**resumed, folder=tmp_path / "killed", **small, resume=True)
    assert_same_state(resumed["agent"], whole["agent"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LPDS, LPS])
def test_the_goal_is_found(tmp_path, kind):
    """Seeds 0, 1 and 2 gave 0.95 to 0.97 (LP-DS) and 1.0 (LPS) by the mode, the prior 0.02."""
    agent = make_agent(
        kind, num_cells=(64, 64), batch_size=64, critic_lr=2e-3, tau=0.03, critic_only_updates=200,
        actor_average=0.9, actor_lr=2e-3, trust_region=1.0, multiplier_init=0.1,
    )  # fmt: skip
    run_online(
        agent, tmp_path, env=make_env(num_envs=32), seed=0, total_env_steps=4_500, warmup_env_steps=1_500, utd=0.4,
        macro_steps_per_round=32, replay_size=20_000, checkpoint_env_steps=10_000,
    )  # fmt: skip
    env, starts = make_env(gamma=1.0, num_envs=32), range(500, 564)
    mode = evaluate(env, agent.kept_policy, starts, deterministic=True).success_once.value
    prior = evaluate(env, PriorNoise(2), starts).success_once.value
    assert mode > prior + 0.3
