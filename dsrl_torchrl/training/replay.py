"""Replay of macro transitions: what is collected online, mixed with offline data."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer


def make_replay_buffer(size: int, batch_size: int) -> TensorDictReplayBuffer:
    """Uniform replay of macro transitions."""
    return TensorDictReplayBuffer(storage=LazyTensorStorage(size), batch_size=batch_size)


def offline_buffer(transitions: TensorDictBase, batch_size: int) -> TensorDictReplayBuffer:
    """Uniform replay of a fixed set of macro transitions ``[n]``."""
    buffer = make_replay_buffer(len(transitions), batch_size)
    buffer.extend(transitions)
    return buffer


class MixedReplay:
    """Batches with a fixed fraction of offline transitions (RLPD's symmetric sampling, Ball et al. 2023, at 0.5).

    Args:
        size: of the online buffer, in macro transitions.
        batch_size: of the mixed batch.
        offline: macro transitions ``[n]`` that stay; ``None`` for online data alone.
        offline_fraction: of every batch, in [0, 1); rounded to whole transitions, at least one of them online.
    """

    def __init__(
        self, size: int, batch_size: int, offline: TensorDictBase | None = None, offline_fraction: float = 0.0
    ) -> None:
        share = min(round(batch_size * offline_fraction), batch_size - 1) if offline is not None else 0
        self.online = make_replay_buffer(size, batch_size - share)
        self.offline = offline_buffer(offline, share) if offline is not None and share else None

    def sample(self, batches: int) -> TensorDictBase:
        """``[batches, batch_size]``: the entries that both kinds have."""
        online = _sample(self.online, batches)
        if self.offline is None:
            return online
        offline = _sample(self.offline, batches)
        return torch.cat([online.select(*offline.keys(True, True)), offline], dim=1)


def _sample(buffer: TensorDictReplayBuffer, batches: int) -> TensorDictBase:
    return buffer.sample(batches * buffer.batch_size).unflatten(0, (batches, buffer.batch_size))
