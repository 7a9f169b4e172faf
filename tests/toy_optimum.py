"""What a test of the toy task can hold a policy against."""

import torch

from dsrl_torchrl.envs.toy import RADIUS, STEP_SIZE


def optimal_steps(start: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """The fewest steps from ``start`` to success, ``ceil((max_i |start_i - goal_i| - RADIUS) / STEP_SIZE)``.

    After ``k`` steps the reachable set is the square of half-side ``k * STEP_SIZE`` around the start.

    Args:
        start: ``[*B, 2]``.
        goal: ``[*B, 2]``.

    Returns:
        ``[*B]`` int64; 0 inside the goal region.
    """
    distance = (start - goal).abs().amax(-1) - RADIUS
    return (distance / STEP_SIZE - 1e-5).ceil().clamp(min=0).long()
