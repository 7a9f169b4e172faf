"""The directions in which the decoder moves most, where they are known."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.policies import BasePolicy
from dsrl_torchrl.steerability.noise_subspace import find_noise_subspace


class Affine(BasePolicy):
    """``chunk = A w``."""

    def __init__(self, a):
        super().__init__(action_dim=2, pred_horizon=3)
        self.a = nn.Parameter(a)
        self.freeze()

    def forward(self, observation, noise):
        return (noise.flatten(-2) @ self.a.T).unflatten(-1, (3, 2))


def find(a, dim, **options):
    decoder = NoiseDecoder(Affine(a), act_horizon=3, **options)
    return find_noise_subspace(decoder, TensorDict({"observation": torch.zeros(40, 1)}, [40]), dim)


def test_an_affine_decoders_subspace_is_that_of_its_singular_vectors():
    torch.manual_seed(0)
    a = torch.randn(6, 6)
    choice = find(a, 2)
    _, values, vh = torch.linalg.svd(a.double())
    assert choice.basis.shape == (6, 2)
    torch.testing.assert_close((choice.basis.double().T @ vh[:2].T).abs(), torch.eye(2).double(), rtol=0, atol=1e-5)
    assert choice.share == pytest.approx(float(values[:2].square().sum() / values.square().sum()), rel=1e-5)


def test_only_executed_actions_count():
    """Noise that moves what is never executed is no direction to steer in."""
    a = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0, 60.0]))
    decoder = NoiseDecoder(Affine(a), act_horizon=2)
    choice = find_noise_subspace(decoder, TensorDict({"observation": torch.zeros(4, 1)}, [4]), 2)
    assert choice.basis.abs().argmax(0).tolist() == [3, 2]
    assert choice.share == pytest.approx(25 / 30)


def test_it_is_that_of_the_noise_layout():
    choice = find(torch.eye(6), 1, noise_layout="repeat")
    assert choice.basis.shape == (2, 1)


@pytest.mark.parametrize(("a", "dim", "message"), [
    (torch.eye(6), 6, r"between 1 and 5 \(the noise has 6 dimensions\), got 6"),
    (torch.zeros(6, 6), 2, "does not react to its noise"),
])  # fmt: skip
def test_what_cannot_be_found(a, dim, message):
    with pytest.raises(UserError, match=message):
        find(a, dim)
