"""The rows of the evaluation's table: which policy each is, and whether its mode acts."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.cli.steps.evaluate import policies_of_run
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.policies import CentredPolicy
from tests.agents.cases import GAMMA, MAGNITUDE, Leaning, make_agent
from tests.training.toy import DSRLAWMLE


def make_env(layout="full", policy=None):
    policy = Leaning() if policy is None else policy
    return LatentActionEnv(
        PointReachEnv(num_envs=4), policy, gamma=GAMMA, action_magnitude=MAGNITUDE, noise_layout=layout
    )


def test_a_stage_is_there_by_what_it_keeps_sampled_and_by_its_mode():
    env = make_env()
    first, second = (make_agent(DSRLAWMLE, env, seed) for seed in (0, 1))
    rows = policies_of_run(env, "noise", first, second)
    assert list(rows) == [
        "base_prior",
        "base_zero",
        "stage1",
        "stage1_deterministic",
        "stage2_stochastic",
        "stage2_deterministic",
    ]
    assert first.kept_policy is not first.policy
    for name, agent, mode in (
        ("stage1", first, False),
        ("stage1_deterministic", first, True),
        ("stage2_stochastic", second, False),
        ("stage2_deterministic", second, True),
    ):
        assert rows[name] == (agent.kept_policy, mode)


@pytest.mark.parametrize("layout", ["full", "repeat"])
def test_the_base_policy_is_there_by_its_prior_and_by_zero_noise(layout):
    env = make_env(layout)
    td, rows = env.reset(), policies_of_run(env, "noise", None, None)
    assert ("base_own" in rows) == (layout == "repeat")  # by a noise for every step
    size = {"base_own": 4, "base_prior": env.latent_dim, "base_zero": env.latent_dim}
    for name, (module, _) in rows.items():
        noise = module(td.expand(1_000, 4).clone())["action"]
        assert noise.shape == (1_000, 4, size[name])
        assert noise.std().item() == pytest.approx(0.0 if name == "base_zero" else 1.0, abs=0.05)


def test_under_a_residual_and_around_a_centre():
    env = make_env()
    assert list(policies_of_run(env, "residual", None, None)) == ["base_prior"]
    centred = make_env(policy=CentredPolicy(Leaning(), torch.ones(2, 2)))
    rows = policies_of_run(centred, "noise", None, None)
    assert list(rows) == ["base_prior", "base_zero", "base_centred"]
    root = centred.reset()  # of its own user, to whom the centre is nothing
    chunk = centred.step(rows["base_zero"][0](root.clone()))["next", "action_chunk"]
    torch.testing.assert_close(chunk, Leaning().decode(root.select("observation"), torch.zeros(4, 2, 2)))
