"""``latent.subspace_dim``: the directions of the noise in which the decoder moves the executed chunk most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.steerability.noise_aliasing import JACOBIAN_BATCH, noise_jacobian
from dsrl_torchrl.steerability.noise_response import prior_noises


@dataclass(frozen=True)
class SubspaceChoice:
    """The top right singular vectors of the stacked Jacobian ``∂head/∂w``.

    Attributes:
        basis: V, ``[layout.dim, dim]``, the strongest direction first.
        share: of the response ``Σ ‖J‖²`` that these directions carry.
    """

    basis: Tensor
    share: float


def find_noise_subspace(
    decoder: NoiseDecoder, observations: TensorDictBase, dim: int, *, seed: int = 0
) -> SubspaceChoice:
    """Measures V at pairs of observation and prior noise; costs ``act_horizon * action_dim`` backward passes of each.

    Args:
        decoder: base policy and noise layout.
        observations: ``[N]``, the base policy's entries.
        dim: number of directions.
        seed: of the noises.

    Raises:
        UserError: ``dim`` is not below ``layout.dim``, or the base policy is not differentiable in its noise or does
            not react to it.
    """
    size = decoder.layout.dim
    if not 1 <= dim < size:
        raise UserError(f"subspace_dim must lie between 1 and {size - 1} (the noise has {size} dimensions), got {dim}")
    noise = prior_noises(decoder, 1, len(observations), seed=seed)[0]
    gram = torch.zeros(size, size, dtype=torch.float64)
    for batch in zip(observations.split(JACOBIAN_BATCH), noise.split(JACOBIAN_BATCH), strict=True):
        jacobian = noise_jacobian(decoder, *batch).flatten(0, 1).double().cpu()  # (n * head, D)
        gram += jacobian.T @ jacobian
    values, vectors = torch.linalg.eigh(gram)  # of JᵀJ: squared singular values, ascending
    if not values.sum() > 0:
        raise UserError("subspace_dim: this base policy does not react to its noise, so no direction is better")
    return SubspaceChoice(
        vectors.flip(1)[:, :dim].float().contiguous(), float(values.flip(0)[:dim].sum() / values.sum())
    )
