"""Several updates from one sample: what they share is done once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dsrl_torchrl.errors import NonFiniteError
from dsrl_torchrl.training.accelerated_update import AcceleratedUpdate

#: Updates that share a sample and what :meth:`Agent.prepare` does for all of them, such as the decode of TD targets.
UPDATES_PER_SAMPLE = 8


def make_updates(
    update: AcceleratedUpdate, sample: Callable[[int], TensorDictBase], *, first: int, count: int
) -> dict[str, Tensor]:
    """Makes ``count`` updates.

    Args:
        update: of the agent.
        sample: gives ``[n, batch_size]`` macro transitions for n updates.
        first: updates made before.
        count: updates to make.

    Returns:
        The newest value of every metric, on the device.
    """
    agent, metrics, end = update.agent, {}, first + count
    while first < end:
        share = min(UPDATES_PER_SAMPLE, end - first)
        batches = agent.prepare(sample(share))
        for step, batch in enumerate(batches.unbind(0), start=first):
            metrics.update(update(batch, agent.parts(step)).items())
        first += share
    return metrics


def check_metrics(metrics: dict[str, Tensor], updates: int) -> dict[str, float]:
    """The metrics as numbers.

    Raises:
        NonFiniteError: names the first that is NaN or infinite.
    """
    if metrics and not bool(torch.isfinite(torch.stack(list(metrics.values()))).all()):
        name = next(name for name, value in metrics.items() if not torch.isfinite(value))
        raise NonFiniteError(name, updates, "update", "lower the learning rates or alpha_init")
    return {name: float(value) for name, value in metrics.items()}
