"""The newest macro steps of an on-policy agent, in the place of a replay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase

from dsrl_torchrl.data.replay import transition_bytes


class Rollout:
    """What all envs made since the last updates, in order; these empty it.

    Args:
        size: macro steps between two rounds of updates.
        batch_size: of a minibatch.
        finish: gets ``[n, T]`` consecutive macro steps of n envs once a round, before the first minibatch.
    """

    def __init__(self, size: int, batch_size: int, finish: Callable[[TensorDictBase], TensorDictBase]) -> None:
        self.size, self.batch_size, self._finish = size, batch_size, finish
        self.restart()

    def restart(self) -> None:
        """Forgets everything: what comes next begins at a reset."""
        self._steps: list[TensorDictBase] = []
        self._finished: TensorDictBase | None = None
        self._order = torch.empty(0, dtype=torch.int64)

    def extend(self, transitions: TensorDictBase) -> None:
        """Takes the next macro step of every env, ``[n]``."""
        if self._finished is not None:
            self.restart()
        self._steps.append(transitions)

    def sample(self, batches: int) -> TensorDictBase:
        """``[batches, batch_size]``: epoch after epoch, each a permutation of all macro steps."""
        if self._finished is None:
            self._finished = self._finish(torch.stack(self._steps, 1)).reshape(-1)
        wanted = batches * self.batch_size
        while len(self._order) < wanted:
            self._order = torch.cat([self._order, torch.randperm(len(self._finished))])
        index, self._order = self._order.split([wanted, len(self._order) - wanted])
        return self._finished[index.to(self._finished.device)].unflatten(0, (batches, self.batch_size))

    def __len__(self) -> int:
        return sum(map(len, self._steps))

    @property
    def nbytes(self) -> int:
        """Of the macro steps that are kept."""
        return sum(len(step) * transition_bytes(step[:1]) for step in self._steps)

    def state_dict(self) -> dict:
        """Nothing: checkpoints are made where envs are reset, which ends a rollout."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Forgets everything."""
        self.restart()
