"""Affine base policies, whose inversion is known in closed form."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.inversion.search import NoiseOptimisation, NoiseRetrieval
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.policies import BasePolicy

OBSERVATION_DIM, ACTION_DIM, PRED_HORIZON = 2, 3, 4
SIZE = PRED_HORIZON * ACTION_DIM
HALF_RANGE = torch.tensor([0.5, 1.0, 4.0])
METHODS = [NoiseOptimisation(steps=5, starts=2), NoiseRetrieval(samples=6)]
ids = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


class AffinePolicy(BasePolicy):
    """``chunk = (1 + s_0²) A w + s_1``, remembering the noise that it saw."""

    def __init__(self, matrix: torch.Tensor, **kwargs) -> None:
        super().__init__(ACTION_DIM, PRED_HORIZON, **kwargs)
        self.matrix = torch.nn.Parameter(matrix)
        self.action_low.copy_(-HALF_RANGE)
        self.action_high.copy_(HALF_RANGE)
        self.seen: list[torch.Tensor] = []

    def forward(self, observation, noise):
        self.seen.append(noise.detach().clone())
        gain, shift = (observation[..., :1].square() + 1), observation[..., 1:]
        return (gain * (noise.flatten(-2) @ self.matrix.mT) + shift).unflatten(-1, (PRED_HORIZON, ACTION_DIM))


class NoGradient(AffinePolicy):
    def forward(self, observation, noise):
        with torch.no_grad():
            return super().forward(observation, noise)


class Server(AffinePolicy):
    """As a JAX model or a server: cannot even be called with a tensor that requires grad."""

    differentiable = False

    def forward(self, observation, noise):
        assert not noise.requires_grad
        return super().forward(observation, noise)


class ImagePolicy(AffinePolicy):
    """:class:`AffinePolicy`, its gain the mean brightness of an image in [0, 1], its shift a nested state."""

    def forward(self, pixels, state, noise):
        assert pixels.dtype == torch.uint8
        gain = (pixels.float().mean((-3, -2, -1), keepdim=False) / 255).sqrt().unsqueeze(-1)
        return super().forward(torch.cat([gain, state.float()], -1), noise)


def diagonal() -> torch.Tensor:
    return torch.diag(torch.linspace(0.5, 1.5, SIZE))


def orthogonal() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(3)))[0]


def make_decoder(matrix: torch.Tensor, act_horizon: int = PRED_HORIZON, layout: str = "full", magnitude: float = 1.5):
    return NoiseDecoder(
        AffinePolicy(matrix).freeze(), act_horizon=act_horizon, noise_layout=layout, action_magnitude=magnitude
    )


def make_data(n: int, act_horizon: int = PRED_HORIZON, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(n, OBSERVATION_DIM, generator=generator)
    return observed(observation), torch.randn(n, act_horizon, ACTION_DIM, generator=generator)


def observed(observation: torch.Tensor) -> TensorDict:
    return TensorDict({"observation": observation}, observation.shape[:-1])


def rms(decoder, observations, noise, chunk, k=None):
    difference = (decoder.decode(observations, noise) - chunk) / HALF_RANGE
    return difference[..., :k, :].square().mean((-1, -2)).sqrt()
