"""Replay of macro transitions: what is collected online, mixed with offline data.

Memory per macro transition in bytes, with float32 entries (numbers: PushCube with 35 observations, chunk 8 x 4, 32
noise dimensions, M = 16; 4,656 in all, 44 MB for 10,000)::

    alias pairs       4 M (latent_dim + act_horizon * action_dim)      4,096    none in DSRL-SAC
    observations      4 * 2 * obs_dim                                    280    s and s'
    noise and chunk   4 (latent_dim + act_horizon * action_dim)          256
    R, k, four flags, TorchRL's index                                     24

s' is kept beside s although it is the next transition's s: one copy would save 3 % (a quarter in DSRL-SAC). TorchRL's
way (the collectors' ``compact_obs`` and :class:`~torchrl.envs.transforms.NextStateReconstructor`) finds s' in the
neighbour *in the sampled batch*: it needs slices of trajectories and gives NaN under uniform sampling. And an episode's
last s', which a truncation bootstraps from, is in no other transition.

On the CPU a buffer's places cost memory when they are filled, not before: the operating system commits pages on the
first write (200,000 places with 10,000 transitions in them: 48 MB resident). On a GPU all are allocated at once.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer


def make_replay_buffer(size: int, device: torch.device | str = "cpu") -> TensorDictReplayBuffer:
    """Uniform replay of macro transitions, stored and sampled on ``device``, the training device."""
    return TensorDictReplayBuffer(storage=LazyTensorStorage(size, device=device))


def offline_buffer(transitions: TensorDictBase, device: torch.device | str = "cpu") -> TensorDictReplayBuffer:
    """Uniform replay of a fixed set of macro transitions ``[n]``."""
    buffer = make_replay_buffer(len(transitions), device)
    buffer.extend(transitions)
    return buffer


def sample_batches(buffer: TensorDictReplayBuffer, batches: int, batch_size: int) -> TensorDictBase:
    """``[batches, batch_size]`` transitions in one draw."""
    return buffer.sample(batches * batch_size).unflatten(0, (batches, batch_size))


class MixedReplay:
    """Batches with a fixed fraction of offline transitions (RLPD's symmetric sampling, Ball et al. 2023, at 0.5).

    Args:
        size: of the online buffer, in macro transitions.
        batch_size: of the mixed batch.
        offline: macro transitions ``[n]`` that stay; ``None`` for online data alone.
        offline_fraction: of every batch, in [0, 1); rounded to whole transitions, at least one of them online.
        device: where both buffers and the batches are: the training device.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        offline: TensorDictBase | None = None,
        offline_fraction: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        share = min(round(batch_size * offline_fraction), batch_size - 1) if offline is not None else 0
        self.online_share, self.offline_share = batch_size - share, share
        self.online = make_replay_buffer(size, device)
        self.offline = offline_buffer(offline, device) if offline is not None and share else None

    def sample(self, batches: int) -> TensorDictBase:
        """``[batches, batch_size]``: the entries that both kinds have."""
        online = sample_batches(self.online, batches, self.online_share)
        if self.offline is None:
            return online
        offline = sample_batches(self.offline, batches, self.offline_share)
        return torch.cat([online.select(*offline.keys(True, True)), offline], dim=1)

    def state_dict(self) -> dict:
        """The online transitions and where the next one goes, as one checkpoint component.

        TorchRL's own ``ReplayBuffer.dump`` writes the whole storage, empty places included, into every checkpoint.
        """
        stored = self.online[:].flatten_keys(".") if len(self.online) else TensorDict()
        return {"transitions": dict(stored.items()), "writer": self.online.writer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Restores :meth:`state_dict` into an empty buffer: every transition to the place it had.

        Raises:
            ValueError: there are more transitions than the buffer has room for.
        """
        stored = TensorDict(state["transitions"]).auto_batch_size_(1)
        count = stored.shape[0] if state["transitions"] else 0
        if count > self.online.storage.max_size:
            raise ValueError(f"{count} transitions, but the buffer has room for {self.online.storage.max_size}")
        if count:
            self.online.extend(stored.unflatten_keys("."))
        self.online.writer.load_state_dict(state["writer"])
