"""A subspace of the noise: what is steered lies in it, the rest is drawn from the prior at every macro step."""

from __future__ import annotations

from hashlib import sha256

import torch
from torch import Tensor

from dsrl_torchrl.errors import UserError


class NoiseSubspace:
    """``w = V z + (I - V Vᵀ) ε``, ``ε ~ N(0, I)`` (Eq. 34): with ``z ~ N(0, I)``, ``w`` is the prior's.

    Args:
        basis: V, ``[D, dim]`` with orthonormal columns, ``dim < D``: D is the size of the noise layout's latent action.

    Raises:
        UserError: another shape, or columns that are not orthonormal.
    """

    def __init__(self, basis: Tensor) -> None:
        if basis.ndim != 2 or not 1 <= basis.shape[1] < basis.shape[0]:
            raise UserError(
                "the basis of a noise subspace should be [D, dim] with fewer columns than rows, got "
                f"{list(basis.shape)}: without a subspace all D dimensions are steered"
            )
        error = (basis.double().T @ basis.double() - torch.eye(basis.shape[1], device=basis.device)).abs().max()
        if not error < 1e-4:
            raise UserError(
                f"the columns of a noise subspace's basis should be orthonormal, they miss it by {error:.2g}"
            )
        self.basis = basis.detach().clone()

    @property
    def dim(self) -> int:
        """Of z."""
        return self.basis.shape[1]

    def complete(self, z: Tensor) -> Tensor:
        """``[*B, dim]`` -> ``[*B, D]``; the rest comes from the global generator. Differentiable in ``z``."""
        basis = self.basis.to(z)
        epsilon = torch.randn(*z.shape[:-1], len(basis), dtype=z.dtype, device=z.device)
        return epsilon + (z - epsilon @ basis) @ basis.T

    def content_hash(self) -> str:
        """Of the basis."""
        return sha256(self.basis.cpu().float().contiguous().numpy().tobytes()).hexdigest()
