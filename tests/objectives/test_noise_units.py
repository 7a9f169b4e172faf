"""Entropies are those of the noise in ±action_magnitude, of one env: what that means for SAC's values and targets."""

from __future__ import annotations

import math

import pytest
import torch
from torchrl.objectives import CrossQLoss, REDQLoss, SACLoss

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLNA, DSRLSAC
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.networks.critics import make_q_noise
from dsrl_torchrl.networks.latent_actor import LatentActor
from dsrl_torchrl.objectives.sac import SACOptions, make_sac_loss
from dsrl_torchrl.policies import FlowPolicy
from examples import any_algorithm

from .any_loss import Networks
from .macro_batch import ALPHA, DIM, FEATURES, GAMMA, MAGNITUDE, SIZES, make_batch

CLOSE = {"rtol": 1e-6, "atol": 1e-9}


def make_loss(magnitude):
    """The same policy and critics, up to the scale of the noise."""
    torch.manual_seed(0)
    return make_sac_loss(
        LatentActor(FEATURES, DIM, magnitude, **SIZES, initial_std=0.5),
        make_q_noise(FEATURES, DIM, magnitude, **SIZES, layer_norm=True),
        SACOptions(alpha_init=ALPHA),
        latent_dim=DIM,
        action_magnitude=magnitude,
        gamma=GAMMA,
        num_critics=2,
    ).double()


def drawn(function, batch):
    torch.manual_seed(1)
    return function(batch)


def test_values_differ_from_those_for_noise_scaled_to_one_in_closed_form():
    """By α D log m per bootstrap: the official runs take the density in [-1, 1], we take it in ±m."""
    ours, scaled, batch = make_loss(MAGNITUDE), make_loss(1.0), make_batch()
    shift = ALPHA * DIM * math.log(MAGNITUDE)
    following = batch["next"].apply(lambda x: x.squeeze(-1) if x.shape[-1] == 1 else x)
    difference = drawn(ours._compute_target_v2, batch) - drawn(scaled._compute_target_v2, batch)
    bootstraps = GAMMA ** following["chunk_steps"].double() * (~following["terminated"]).double()
    torch.testing.assert_close(difference, shift * bootstraps, **CLOSE)
    actor, official = (drawn(loss.actor_loss, batch)[0] for loss in (ours, scaled))
    torch.testing.assert_close(official - actor, torch.tensor(shift).double(), **CLOSE)  # a constant: no gradient


def test_the_temperature_learns_as_for_noise_scaled_to_one():
    losses, batch = [make_loss(MAGNITUDE), make_loss(1.0)], make_batch()
    values = [loss.alpha_loss(drawn(loss.actor_loss, batch)[1]["log_prob"]) for loss in losses]
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-6)  # TorchRL keeps the target entropy in float32
    assert losses[1].target_entropy == pytest.approx(-0.5 * DIM)


def make_env(num_envs):
    base_policy = FlowPolicy(observation_dim=2, action_dim=2, pred_horizon=4).freeze()
    return LatentActionEnv(PointReachEnv(num_envs=num_envs), base_policy, gamma=0.98, action_magnitude=1.0)


@pytest.mark.parametrize("agent", [DSRLSAC, DSRLNA])
def test_our_target_entropy_is_of_one_env(agent):
    env = make_env(16)
    config = agent.Config(target_entropy_per_dim=-1.0)
    assert float(agent(env, config).sac.target_entropy) == -env.latent_dim == -8


@pytest.mark.parametrize("loss", [SACLoss, REDQLoss, CrossQLoss])
def test_torchrls_target_entropy_is_of_one_env_where_the_spec_is(loss):
    env, networks = make_env(16), Networks(2, 8, dtype=torch.float32)
    for spec, entropy in ((env.action_spec_unbatched, -8), (env.action_spec, -128)):
        assert float(loss(networks.actor(), networks.q(), action_spec=spec).target_entropy) == entropy


def test_the_examples_target_entropy_is_of_one_env(monkeypatch):
    made = []

    class Spy(SACLoss):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)
            raise InterruptedError

    monkeypatch.setattr(any_algorithm, "SACLoss", Spy)
    with pytest.raises(InterruptedError):
        any_algorithm.main()
    assert float(made[0].target_entropy) == -0.5 * 8
