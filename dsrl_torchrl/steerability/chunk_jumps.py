"""Jumps of the executed actions where one chunk ends and the next begins."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dsrl_torchrl.policies.base_policy import BasePolicy
from dsrl_torchrl.steerability.prior_rollouts import PriorRollouts


@dataclass(frozen=True)
class ChunkJumps:
    """How far consecutive actions differ, in half action ranges, averaged over action dims.

    Attributes:
        jump: ``|a_0 of the next chunk - last executed action of this chunk|``; 0 if no episode has a second chunk.
        step: ``|a_{j+1} - a_j|`` between executed actions of one chunk; 0 for chunks of one action.
    """

    jump: float
    step: float

    @property
    def ratio(self) -> float:
        """Jump in units of the ordinary step: 1 is no jump at all. Infinite where the steps are 0."""
        return self.jump / self.step if self.step > 0 else float("inf" if self.jump > 0 else 1.0)


def chunk_jumps(rollouts: PriorRollouts, base_policy: BasePolicy) -> ChunkJumps:
    """Jumps and steps of executed actions in closed loop.

    Closed loop because the next chunk answers to what this one did: decoding other layouts at recorded observations
    costs no env step, but underestimates the jumps of a layout that drives the robot elsewhere.

    Args:
        rollouts: of any base policy and layout.
        base_policy: actions are scaled to its range [-1, 1].
    """
    action = base_policy.normalise_action(rollouts.chunk.to(base_policy.device))  # (N, R, T, H_a, A)
    steps = rollouts.steps.to(action.device)
    index = steps.new_tensor(range(action.shape[-2]))
    inside = index[1:] < steps[..., None]  # (N, R, T, H_a - 1): both actions of the pair were executed
    # An episode that goes on has executed its chunk to the end.
    across = steps[..., 1:] > 0  # (N, R, T - 1)
    return ChunkJumps(
        _mean_distance(action[..., 1:, 0, :] - action[..., :-1, -1, :], across),
        _mean_distance(action[..., 1:, :] - action[..., :-1, :], inside),
    )


def _mean_distance(difference: Tensor, valid: Tensor) -> float:
    return float(difference[valid].abs().mean()) if valid.any() else 0.0
