"""A noise subspace (Eq. 34): the equation, the prior that it keeps, and what is drawn and what is given."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLAWMLE
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import CheckpointError, UserError
from dsrl_torchrl.latent_env.noise_subspace import NoiseSubspace
from tests.agents.cases import GAMMA, MAGNITUDE, Leaning, make_agent


def make_basis(size=4, dim=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, dim, generator=generator, dtype=torch.float64))[0].float()


def make_env(basis, **options):
    env = PointReachEnv(num_envs=4, max_episode_steps=6, seed=0)
    return LatentActionEnv(
        env, Leaning(), gamma=GAMMA, action_magnitude=MAGNITUDE, subspace=NoiseSubspace(basis), **options
    )


def test_the_noise_is_the_equation():
    basis = make_basis(7, 3)
    subspace, z = NoiseSubspace(basis), torch.randn(50, 3)
    torch.manual_seed(5)
    w = subspace.complete(z)
    torch.manual_seed(5)
    epsilon = torch.randn(50, 7).double()
    v = basis.double()
    expected = z.double() @ v.T + epsilon @ (torch.eye(7, dtype=torch.float64) - v @ v.T)
    torch.testing.assert_close(w.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(w @ basis, z, rtol=1e-5, atol=1e-5)


def test_prior_coordinates_give_the_prior():
    torch.manual_seed(0)
    w = NoiseSubspace(make_basis(5, 2)).complete(torch.randn(40_000, 2))
    torch.testing.assert_close(torch.cov(w.T), torch.eye(5), rtol=0, atol=0.03)


def test_what_is_steered_is_given_and_the_rest_is_drawn():
    env = make_env(make_basis())
    observations, z = env.reset().select("observation"), torch.randn(4, 2)
    torch.manual_seed(5)
    first = env.decoder.decode(observations, z)
    assert not torch.equal(env.decoder.decode(observations, z), first)
    torch.manual_seed(5)
    torch.testing.assert_close(env.decoder.decode(observations, z), first, rtol=0, atol=0)
    torch.manual_seed(5)
    whole = env.decoder.subspace.complete(z)  # completed by the caller it is deterministic
    for _ in range(2):
        torch.testing.assert_close(env.decoder.decode(observations, whole), first, rtol=0, atol=0)


def test_a_gradient_reaches_the_coordinates_alone():
    env = make_env(make_basis())
    z = torch.randn(4, 2, requires_grad=True)
    env.decoder.decode(env.reset().select("observation"), z).sum().backward()
    assert z.grad.abs().sum() > 0


def test_the_env_is_one_of_fewer_dimensions():
    env = make_env(make_basis())
    assert env.latent_dim == 2 and env.action_spec.shape == (4, 2)
    state = torch.get_rng_state()
    make_env(make_basis())
    assert torch.equal(torch.get_rng_state(), state)  # the episodes that follow are those of the user's seed
    rollout = env.rollout(3, break_when_any_done=False)
    assert rollout["action"].shape == (4, 3, 2)
    assert rollout["next", "action_chunk"].shape == (4, 3, 2, 2)


def test_what_was_learned_in_another_subspace_is_refused(tmp_path):
    make_agent(DSRLAWMLE, make_env(make_basis())).save(tmp_path)
    make_agent(DSRLAWMLE, make_env(make_basis())).load(tmp_path)
    with pytest.raises(CheckpointError, match="its subspace is"):
        make_agent(DSRLAWMLE, make_env(make_basis(seed=1))).load(tmp_path)


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (torch.eye(4), r"fewer columns than rows, got \[4, 4\]"),
        (torch.zeros(4), r"got \[4\]"),
        (2 * torch.eye(4)[:, :2], "should be orthonormal, they miss it by 3"),
        (make_basis(6, 2), "basis has 6 rows, the layout full has 4 dimensions"),
    ],
)
def test_bad_bases(basis, message):
    with pytest.raises(UserError, match=message) as error:
        make_env(basis)
    assert "\n" not in str(error.value)
