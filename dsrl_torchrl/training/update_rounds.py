"""Several updates from one sample: what they share is done once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import exploration_type, set_exploration_type

from dsrl_torchrl.errors import NonFiniteError
from dsrl_torchrl.training.accelerated_update import AcceleratedUpdate
from dsrl_torchrl.training.run_state import Counters

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


class OwedUpdates:
    """Updates that collected macro steps have earned, made when there is time for them.

    Args:
        update: of the agent.
        sample: gives ``[n, batch_size]`` macro transitions for n updates.
        utd: updates per macro step.
    """

    def __init__(self, update: AcceleratedUpdate, sample: Callable[[int], TensorDictBase], utd: float) -> None:
        self._update, self._sample, self._utd, self._exploration = update, sample, utd, exploration_type()
        self._first = self._owed = 0
        self.metrics: dict[str, Tensor] = {}  #: the newest of each, on the device

    def owe(self, counters: Counters) -> None:
        """Counts the updates that ``counters.macro_steps`` have earned by now, those made so far included."""
        self._first, counters.updates = counters.updates, int(self._utd * counters.macro_steps)
        self._owed = counters.updates - self._first

    def make(self) -> None:
        """Makes those that are owed; in the middle of a rollout, too, which knows no gradients and explores."""
        count, self._owed = self._owed, 0
        with torch.enable_grad(), set_exploration_type(self._exploration):
            self.metrics |= make_updates(self._update, self._sample, first=self._first, count=count)


def check_metrics(metrics: dict[str, Tensor], updates: int) -> dict[str, float]:
    """The metrics as numbers.

    Raises:
        NonFiniteError: names the first that is NaN or infinite.
    """
    # Together: each number by itself would wait for the device once more.
    numbers = torch.stack(list(metrics.values())).cpu().tolist() if metrics else []
    values = dict(zip(metrics, numbers, strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteError(name, updates, "update", "lower the learning rates or alpha_init")
    return values
