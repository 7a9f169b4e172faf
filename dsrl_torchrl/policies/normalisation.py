"""Scales of observations and actions, kept as buffers so that a checkpoint is complete."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsrl_torchrl.errors import UserError

# A dimension that never moved in the data has no scale. Dividing by its jitter would blow up the first
# real motion, so observations fall back to unit scale, and actions to a narrow range around the constant.
MIN_OBSERVATION_STD = 1e-4
MIN_ACTION_HALF_RANGE = 1e-2

#: What quantile scaling keeps of each action dimension.
ACTION_QUANTILES = (0.01, 0.99)

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
    rows = valid_actions(actions, action_dim, valid)
    low, high = rows.amin(0), rows.amax(0)
    centre, half_range = (low + high) / 2, (high - low) / 2
    narrow = half_range < MIN_ACTION_HALF_RANGE
    return (
        torch.where(narrow, centre - MIN_ACTION_HALF_RANGE, low),
        torch.where(narrow, centre + MIN_ACTION_HALF_RANGE, high),
    )


def clip_outliers(actions: Tensor, valid: Tensor | None = None) -> Tensor:
    """Clips each action dimension to the 1 % and 99 % quantiles of its valid actions.

    What :func:`action_range` then takes is the quantile scaling of openpi (``use_quantile_norm``: ``q01``, ``q99``) and
    LeRobot (``NormalizationMode.QUANTILES``), so that a few extreme actions do not squeeze all others. Those lie on the
    bound here, where our samplers' clamp puts them, instead of beyond. A dimension that rests for 98 % of the time
    keeps its whole range: the rare values of a gripper that seldom moves are what it is for.

    Args:
        actions: ``[*N, pred_horizon, action_dim]`` in env units.
        valid: bool ``[*N, pred_horizon]``, as in :func:`action_range`.

    Raises:
        UserError: see :func:`action_range`.
    """
    rows = valid_actions(actions, actions.shape[-1], valid).sort(0).values
    low, high = (_quantile(rows, q) for q in ACTION_QUANTILES)
    resting = high - low < 2 * MIN_ACTION_HALF_RANGE
    return actions.clamp(torch.where(resting, rows[0], low), torch.where(resting, rows[-1], high))


def _quantile(ordered: Tensor, q: float) -> Tensor:
    """Linear between neighbours, of sorted ``[n, dim]``; ``torch.quantile`` refuses more than 16 million numbers."""
    position = q * (len(ordered) - 1)
    below = int(position)
    return torch.lerp(ordered[below], ordered[min(below + 1, len(ordered) - 1)], position - below)


def valid_actions(actions: Tensor, action_dim: int, valid: Tensor | None = None) -> Tensor:
    """The actions that count, ``[n, action_dim]``. Arguments and errors are those of :func:`action_range`."""
    rows = finite_rows("action", actions, action_dim)
    if valid is not None:
        if valid.numel() != rows.shape[0]:
            raise UserError(
                f"valid must have one flag per action: {rows.shape[0]} actions, valid is {tuple(valid.shape)}"
            )
        rows = rows[valid.reshape(-1).bool()]
    if not len(rows):
        raise UserError("cannot take the normalisation from a dataset without valid observations and actions")
    return rows


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
