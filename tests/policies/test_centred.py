"""A base policy around another noise (Eq. 38): the equation, what stays the prior's, and what delegates."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLAWMLE
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import CheckpointError, UserError
from dsrl_torchrl.latent_env.noise_subspace import NoiseSubspace
from dsrl_torchrl.latent_env.prior_noise import make_own_prior, make_prior
from dsrl_torchrl.policies import CentredPolicy, FlowPolicy
from tests.agents.cases import GAMMA, MAGNITUDE, Leaning, make_agent

CENTRE = torch.tensor([[1.0, -2.0], [0.5, 0.25]])


def make_env(policy=None, **options):
    env = PointReachEnv(num_envs=4, max_episode_steps=6, seed=0)
    policy = CentredPolicy(Leaning(), CENTRE) if policy is None else policy
    return LatentActionEnv(env, policy, gamma=GAMMA, action_magnitude=MAGNITUDE, **options)


def flow(**options):
    torch.manual_seed(0)
    return FlowPolicy(observation_dim=2, action_dim=2, pred_horizon=2, **options).freeze()


def test_the_noise_is_the_equation():
    policy, observations, noise = flow(), TensorDict(observation=torch.randn(50, 2), batch_size=[50]), torch.randn(2, 2)
    centred = CentredPolicy(policy, CENTRE, share=0.6)
    expected = policy.decode(observations, (0.6 * CENTRE + 0.8 * noise).expand(50, 2, 2))
    torch.testing.assert_close(centred.decode(observations, noise.expand(50, 2, 2)), expected)
    torch.testing.assert_close(centred.coordinates(centred.place(noise)), noise)


def test_a_drawn_centre_keeps_the_prior():
    torch.manual_seed(0)
    policy = flow()
    noise = torch.stack([CentredPolicy(policy, torch.randn(2, 2)).place(torch.randn(2, 2)) for _ in range(20_000)])
    torch.testing.assert_close(torch.cov(noise.flatten(1).T), torch.eye(4), rtol=0, atol=0.04)


def test_a_gradient_reaches_the_noise_alone():
    policy, noise = CentredPolicy(flow(), CENTRE), torch.randn(3, 2, 2, requires_grad=True)
    policy.decode(TensorDict(observation=torch.randn(3, 2), batch_size=[3]), noise).sum().backward()
    assert noise.grad.abs().sum() > 0
    assert policy.frozen and all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("layout", ["full", "repeat"])
def test_the_base_policys_own_prior_is_still_there(layout):
    """As its user runs it: the noise of the same generator, decoded by the base policy itself."""
    env = make_env(CentredPolicy(flow(), CENTRE), noise_layout=layout)
    plain = make_env(flow(), noise_layout=layout)
    for scale in (1.0, 0.0):
        steps = []
        for each, prior in (
            (env, make_own_prior(env.decoder, scale)),
            (plain, make_prior(plain.decoder, scale)),
        ):
            each.set_seed(3)
            td = each.reset()
            torch.manual_seed(7)
            steps.append(each.step(prior(td))["next", "action_chunk"])
        torch.testing.assert_close(*steps)


def test_in_a_subspace_the_rest_of_the_base_policys_prior_is_drawn_too():
    torch.manual_seed(0)
    subspace = NoiseSubspace(torch.linalg.qr(torch.randn(4, 2))[0])
    chunks = []
    for policy in (CentredPolicy(flow(), CENTRE), flow()):
        env = make_env(policy, subspace=subspace)
        env.set_seed(3)
        td = env.reset()
        for scale in (1.0, 0.0):
            torch.manual_seed(7)
            chunks.append(env.step(make_own_prior(env.decoder, scale)(td.clone()))["next", "action_chunk"])
    torch.manual_seed(7)
    for around, plain in zip(chunks[:2], chunks[2:], strict=True):
        torch.testing.assert_close(around, plain)


def test_its_prior_is_that_around_the_centre():
    env = make_env()
    td = make_prior(env.decoder, 0.0)(env.reset())
    chunk = env.step(td)["next", "action_chunk"]
    plain = Leaning()
    expected = plain.decode(td.select("observation"), 0.7 * CENTRE.expand(4, 2, 2))
    torch.testing.assert_close(chunk, expected)


def test_what_was_learned_around_another_centre_is_refused(tmp_path):
    def centred(centre):
        return make_env(CentredPolicy(flow(), centre))

    make_agent(DSRLAWMLE, centred(CENTRE)).save(tmp_path)
    make_agent(DSRLAWMLE, centred(CENTRE)).load(tmp_path)
    for other in (centred(-CENTRE), make_env(flow())):
        with pytest.raises(CheckpointError, match="its base_policy is"):
            make_agent(DSRLAWMLE, other).load(tmp_path)


@pytest.mark.parametrize(
    ("centre", "share", "message"),
    [
        (torch.zeros(3, 2), 0.7, r"a finite noise of shape \[2, 2\], got \[3, 2\]"),
        (torch.full((2, 2), torch.nan), 0.7, "a finite noise"),
        (CENTRE, 1.0, "should lie between 0 and 1, got 1.0"),
        (CENTRE, 0.0, "should lie between 0 and 1, got 0.0"),
    ],
)
def test_bad_centres(centre, share, message):
    with pytest.raises(UserError, match=message):
        CentredPolicy(flow(), centre, share)
