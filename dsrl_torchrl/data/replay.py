"""Replay of macro transitions: what is collected online, mixed with offline data.

Memory per macro transition in bytes, with float32 entries (numbers: PushCube with 35 observations, chunk 8 x 4, 32
noise dimensions, M = 16 decoded pairs)::

    decoded pairs     4 M (latent_dim + act_horizon * action_dim)      4,096    of DSRL-AW-MLE alone
    observations      4 * 2 * obs_dim                                    280    s and s'
    noise and chunk   4 (latent_dim + act_horizon * action_dim)          256
    R, k, four flags, TorchRL's index                                     24

and ``C H W`` for an image entry, whose frames are kept once each (:mod:`~dsrl_torchrl.data.frame_pool`): 12,288 for
64 x 64 RGB, whatever the length of its history. A state's s' is kept beside s although it is the next transition's s:
TorchRL's way of sharing it (``compact_obs`` and :class:`~torchrl.envs.transforms.NextStateReconstructor`) needs slices
of trajectories and gives NaN under uniform sampling, and an episode's last s', which a truncation bootstraps from, is
in no other transition.

States are stored where the learner is. Transitions with images are stored on the CPU, as uint8, and moved batch by
batch; with ``memmap`` on disk, in the folder for temporary files (``TMPDIR``). On the CPU a buffer's places cost memory
when they are filled, not before: the operating system commits pages on the first write. On a GPU all are allocated at
once.
"""

from __future__ import annotations

import tempfile

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer

from dsrl_torchrl.data.frame_pool import FramePool, is_image


def has_images(transitions: TensorDictBase) -> bool:
    """Whether any entry is an image."""
    return any(is_image(value, transitions.ndim) for value in transitions.values(True, True))


def transition_bytes(transitions: TensorDictBase) -> int:
    """Size of one of ``[n]`` transitions."""
    return sum(value[0].numel() * value.element_size() for value in transitions.values(True, True))


def make_replay_buffer(
    size: int, first: TensorDictBase, device: torch.device | str = "cpu", *, memmap: bool = False
) -> TensorDictReplayBuffer:
    """Uniform replay of ``size`` macro transitions, stored on ``device``, or on disk; ``first`` are in it."""
    if not memmap:
        buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(size, device=device))
        buffer.extend(first)
        return buffer
    # TorchRL's own choice is /dev/shm, which is memory. What is mapped stays when its file is gone, and no end of the
    # process leaves any behind.
    with tempfile.TemporaryDirectory(prefix="dsrl-replay-") as folder:
        buffer = TensorDictReplayBuffer(storage=LazyMemmapStorage(size, scratch_dir=folder))
        buffer.extend(first)
    return buffer


class Replay:
    """Batches with a fraction of offline transitions (RLPD's symmetric sampling, Ball et al. 2023, at 0.5).

    Args:
        size: of the online buffer, in macro transitions.
        batch_size: of the mixed batch.
        offline: macro transitions ``[n]`` that stay; ``None`` for online data alone.
        offline_fraction: of every batch, in [0, 1]; rounded to whole transitions. 1 is offline learning. ``None``:
            their share of all that is stored now, as if the replay had been filled with them before anything else.
        device: where batches are needed: the learner's.
        memmap: keep online transitions on disk.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        offline: TensorDictBase | None = None,
        offline_fraction: float | None = 0.0,
        device: torch.device | str = "cpu",
        memmap: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self.offline_fraction = 0.0 if offline is None else offline_fraction
        self.size, self.device, self.memmap = size, torch.device(device), memmap
        self._pool = FramePool(memmap)
        self._online: TensorDictReplayBuffer | None = None
        self.offline: TensorDictReplayBuffer | None = None
        if offline is not None and (offline_fraction is None or self.offline_share):
            self.offline = make_replay_buffer(len(offline), self._pool.take(offline), self._home(offline))

    @property
    def offline_share(self) -> int:
        """Offline transitions in a batch."""
        fraction = self.offline_fraction
        if fraction is None:
            assert self.offline is not None
            stored = len(self.offline) + len(self)
            return min(max(round(self.batch_size * len(self.offline) / stored), 1), self.batch_size - 1)
        share = round(self.batch_size * fraction)
        return share if fraction == 1 else min(share, self.batch_size - 1)

    def extend(self, transitions: TensorDictBase) -> None:
        """Stores online transitions ``[n]``; the oldest make room."""
        packed = self._pool.take(transitions[-self.size :])
        if self._online is None:
            self._online = make_replay_buffer(self.size, packed, self._home(transitions), memmap=self.memmap)
            return
        if len(self) == self.size or len(self) + len(packed) > self.size:
            places = (int(self._online.writer._cursor) + torch.arange(len(packed))) % self.size
            self._pool.release(self._online.storage[places[places < len(self)]])
        self._online.extend(packed)

    def __len__(self) -> int:
        return 0 if self._online is None else len(self._online)

    @property
    def nbytes(self) -> int:
        """Of the transitions that are kept, offline ones included."""
        buffers = [buffer for buffer in (self._online, self.offline) if buffer is not None]
        return self._pool.nbytes + sum(len(buffer) * transition_bytes(buffer[:1]) for buffer in buffers)

    def sample(self, batches: int) -> TensorDictBase:
        """``[batches, batch_size]`` on the learner's device: the entries that both kinds have."""
        share = self.offline_share
        if self._online is None or share == self.batch_size:
            assert self.offline is not None
            return self._sample(self.offline, batches, share)
        online = self._sample(self._online, batches, self.batch_size - share)
        if self.offline is None:
            return online
        offline = self._sample(self.offline, batches, share)
        return torch.cat([online.select(*offline.keys(True, True)), offline], dim=1)

    def _sample(self, buffer: TensorDictReplayBuffer, batches: int, share: int) -> TensorDictBase:
        batch = self._pool.give(buffer.sample(batches * share))
        return batch.unflatten(0, (batches, share)).to(self.device)

    def _home(self, transitions: TensorDictBase) -> torch.device:
        return torch.device("cpu") if has_images(transitions) else self.device

    def state_dict(self) -> dict:
        """The online transitions and where the next one goes, as one checkpoint component.

        TorchRL's own ``ReplayBuffer.dump`` writes the whole storage, empty places included, into every checkpoint.
        """
        if self._online is None:
            return {"transitions": {}, "writer": {}, "images": {}}
        packed, images = self._pool.save(self._online[:])
        return {"transitions": packed.to_dict(), "writer": self._online.writer.state_dict(), "images": images}

    def load_state_dict(self, state: dict) -> None:
        """Restores :meth:`state_dict`: every transition to the place it had, or, in a larger buffer, by age.

        Raises:
            ValueError: there are more transitions than the buffer has room for.
        """
        if self._online is not None:
            self._pool.release(self._online[:])
        self._online = None
        if not state["transitions"]:
            return
        stored, writer = TensorDict(state["transitions"]).auto_batch_size_(1), dict(state["writer"])
        if len(stored) > self.size:
            raise ValueError(f"{len(stored)} transitions, but the buffer has room for {self.size}")
        cursor = int(writer["_cursor"])
        if cursor < len(stored) < self.size:
            # It was full, and has room now: the oldest come first, and the next goes behind the newest.
            index = stored.get("index")
            stored = stored[torch.arange(len(stored)).roll(-cursor)]
            stored.set("index", index)
            writer["_cursor"] = len(stored)
        home = torch.device("cpu") if state["images"]["shapes"] else self.device
        packed = self._pool.load(stored, state["images"])
        self._online = make_replay_buffer(self.size, packed, home, memmap=self.memmap)
        self._online.writer.load_state_dict(writer)
