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


class Normalisation(nn.Module):
    """Observations to zero mean and unit variance, actions from their range in the data to [-1, 1].

    The identity until :meth:`fit`; ``fitted`` tells.

    Args:
        observation_dim: size of the flat observation, history included.
        action_dim: size of one action.
    """

    observation_mean: Tensor  # (observation_dim,)
    observation_std: Tensor  # (observation_dim,)
    action_low: Tensor  # (action_dim,) in env units
    action_high: Tensor  # (action_dim,)
    fitted: Tensor  # () bool

    def __init__(self, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        self.register_buffer("observation_mean", torch.zeros(observation_dim))
        self.register_buffer("observation_std", torch.ones(observation_dim))
        self.register_buffer("action_low", -torch.ones(action_dim))
        self.register_buffer("action_high", torch.ones(action_dim))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, observations: Tensor, actions: Tensor, valid: Tensor | None = None) -> None:
        """Takes the scales from data, in place.

        Args:
            observations: ``[*N, observation_dim]``.
            actions: ``[*N, pred_horizon, action_dim]`` in env units; any leading dims are allowed.
            valid: bool ``[*N, pred_horizon]``, False for padded actions, which are then left out.

        Raises:
            UserError: wrong sizes, no data, or NaN/Inf anywhere in the data, padding included (a padded NaN would
                still enter the network).
        """
        observations = _finite_rows("observation", observations, self.observation_mean.numel())
        actions = _finite_rows("action", actions, self.action_low.numel())
        if valid is not None:
            if valid.numel() != actions.shape[0]:
                raise UserError(
                    f"valid must have one flag per action: {actions.shape[0]} actions, valid is {tuple(valid.shape)}"
                )
            actions = actions[valid.reshape(-1).bool()]
        if not len(observations) or not len(actions):
            raise UserError("cannot take the normalisation from a dataset without valid observations and actions")

        std = observations.std(0, correction=0)
        self.observation_mean.copy_(observations.mean(0))
        self.observation_std.copy_(torch.where(std < MIN_OBSERVATION_STD, torch.ones_like(std), std))
        low, high = actions.amin(0), actions.amax(0)
        centre, half_range = (low + high) / 2, (high - low) / 2
        narrow = half_range < MIN_ACTION_HALF_RANGE
        self.action_low.copy_(torch.where(narrow, centre - MIN_ACTION_HALF_RANGE, low))
        self.action_high.copy_(torch.where(narrow, centre + MIN_ACTION_HALF_RANGE, high))
        self.fitted.fill_(True)

    def normalise_observation(self, observation: Tensor) -> Tensor:
        """``[*B, observation_dim]`` -> the same shape, in standard deviations, within ±10."""
        scaled = (observation - self.observation_mean) / self.observation_std
        return scaled.clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)

    def normalise_action(self, action: Tensor) -> Tensor:
        """``[*B, action_dim]`` in env units -> [-1, 1] inside the data's range."""
        return 2 * (action - self.action_low) / (self.action_high - self.action_low) - 1

    def denormalise_action(self, action: Tensor) -> Tensor:
        """``[*B, action_dim]`` in [-1, 1] -> env units."""
        return self.action_low + (action + 1) / 2 * (self.action_high - self.action_low)


def _finite_rows(name: str, values: Tensor, size: int) -> Tensor:
    if values.ndim < 2 or values.shape[-1] != size:
        raise UserError(f"{name} data must have the shape [..., {size}], got {tuple(values.shape)}")
    rows = values.reshape(-1, size)
    bad = (~rows.isfinite()).any(-1)
    if bad.any():
        raise UserError(
            f"{name} data holds NaN or infinite values in {int(bad.sum())} of {len(rows)} rows, "
            f"first in row {int(bad.nonzero()[0])}"
        )
    return rows
