"""Scales of observations and actions, kept as buffers so that a checkpoint is complete."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsrl_torchrl.errors import UserError

# A dimension that never moved in the data has no scale. Dividing by its jitter would blow up the first
# real motion, so observations fall back to unit scale, and actions to a narrow range around the constant.
MIN_OBSERVATION_STD = 1e-4
MIN_ACTION_HALF_RANGE = 1e-2

# Observations far outside the demonstrations stay where the network has been trained (VecNormalize in
# Stable-Baselines3 clips at the same value).
OBSERVATION_CLIP = 10.0


class ObservationScale(nn.Module):
    """Flat observations to zero mean and unit variance; the identity until :meth:`fit`.

    Args:
        observation_dim: size of the observation, history included.
    """

    mean: Tensor  # (observation_dim,)
    std: Tensor  # (observation_dim,)
    fitted: Tensor  # () bool

    def __init__(self, observation_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(observation_dim))
        self.register_buffer("std", torch.ones(observation_dim))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, observations: Tensor) -> None:
        """Takes the scales from ``[*N, observation_dim]``, in place.

        Raises:
            UserError: wrong size, no data, or NaN/Inf in it.
        """
        observations = finite_rows("observation", observations, self.mean.numel())
        mean, std = observation_statistics(observations)
        self.mean.copy_(mean)
        self.std.copy_(std)
        self.fitted.fill_(True)

    def forward(self, observation: Tensor) -> Tensor:
        """``[*B, observation_dim]`` -> the same shape, in standard deviations, within ±10."""
        return ((observation - self.mean) / self.std).clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)


def observation_statistics(observations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the rows of ``[n, dim]``; 1 where nothing moves."""
    std = observations.std(0, correction=0)
    return observations.mean(0), torch.where(std < MIN_OBSERVATION_STD, torch.ones_like(std), std)


def action_range(actions: Tensor, action_dim: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Lowest and highest action, ``[action_dim]`` each, of ``[*N, pred_horizon, action_dim]`` in env units.

    Args:
        actions: any leading dims.
        action_dim: what their last size should be.
        valid: bool ``[*N, pred_horizon]``, False for padded actions, which are then left out.

    Raises:
        UserError: wrong sizes, no data, or NaN/Inf anywhere, padding included (it would still enter the network).
    """
    rows = finite_rows("action", actions, action_dim)
    if valid is not None:
        if valid.numel() != rows.shape[0]:
            raise UserError(
                f"valid must have one flag per action: {rows.shape[0]} actions, valid is {tuple(valid.shape)}"
            )
        rows = rows[valid.reshape(-1).bool()]
    if not len(rows):
        raise UserError("cannot take the normalisation from a dataset without valid observations and actions")
    low, high = rows.amin(0), rows.amax(0)
    centre, half_range = (low + high) / 2, (high - low) / 2
    narrow = half_range < MIN_ACTION_HALF_RANGE
    return (
        torch.where(narrow, centre - MIN_ACTION_HALF_RANGE, low),
        torch.where(narrow, centre + MIN_ACTION_HALF_RANGE, high),
    )


def finite_rows(name: str, values: Tensor, size: int) -> Tensor:
    """``[..., size]`` -> ``[n, size]``; raises :class:`UserError` for another size, NaN or infinity."""
    if values.ndim < 2 or values.shape[-1] != size:
        raise UserError(f"{name} data must have the shape [..., {size}], got {tuple(values.shape)}")
    rows = values.reshape(-1, size)
    if not len(rows):
        raise UserError("cannot take the normalisation from a dataset without valid observations and actions")
    bad = (~rows.isfinite()).any(-1)
    if bad.any():
        raise UserError(
            f"{name} data holds NaN or infinite values in {int(bad.sum())} of {len(rows)} rows, "
            f"first in row {int(bad.nonzero()[0])}"
        )
    return rows
