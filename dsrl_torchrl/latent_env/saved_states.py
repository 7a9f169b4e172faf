"""States of a macro env that can be gone back to, in whichever of its sub-envs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.transforms import CatFrames

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.checks import innermost, transforms_of


@runtime_checkable
class RestorableEnv(Protocol):
    """An env with a batch ``[N]`` whose sub-envs can go back to a state: the same actions then give the same steps."""

    def get_state(self) -> list[Any]:
        """The present states of the ``N`` sub-envs, one opaque object each, which later steps leave as it is."""

    def set_state(self, states: Sequence[Any]) -> None:
        """Puts sub-env ``i`` into ``states[i]``, of whichever sub-env that was."""


@dataclass(frozen=True)
class SavedStates:
    """``n`` states of a macro env, each with what its policy sees there.

    Attributes:
        root: ``[n]``, what the next step starts from: observation entries, with their history.
        simulation: n states of the env below all transforms.
        histories: of every ``CatFrames``, ``[n, ...]``.
    """

    root: TensorDictBase
    simulation: list[Any]
    histories: list[Tensor]

    def __len__(self) -> int:
        return len(self.simulation)

    def __getitem__(self, rows: Sequence[int]) -> SavedStates:
        """Those of ``rows``, each as often as it is named."""
        index = list(rows)
        histories = [history[index] for history in self.histories]
        return SavedStates(self.root[index], [self.simulation[row] for row in index], histories)

    @classmethod
    def cat(cls, parts: Sequence[SavedStates]) -> SavedStates:
        """All of several."""
        histories = [torch.cat(same) for same in zip(*(part.histories for part in parts), strict=True)]
        simulation = [state for part in parts for state in part.simulation]
        return cls(torch.cat([part.root for part in parts]), simulation, histories)


def can_restore(env: EnvBase) -> bool:
    """Whether :func:`save_states` and :func:`restore_states` work: not through worker processes."""
    return isinstance(innermost(env), RestorableEnv)


def save_states(env: EnvBase, root: TensorDictBase) -> SavedStates:
    """The states of all sub-envs.

    Args:
        env: with a batch ``[N]``.
        root: ``[N]``, what its next step would start from.

    Raises:
        UserError: an env that cannot restore a state.
    """
    return SavedStates(
        root.exclude("action").clone(), _restorable(env).get_state(), [buffer.clone() for buffer in _buffers(env)]
    )


def restore_states(env: EnvBase, states: SavedStates) -> TensorDictBase:
    """Puts every sub-env into one of the ``N`` states; returns the root ``[N]`` that the next step starts from.

    Of the transforms' own state, histories of frames are restored; what others keep (a running normalisation) stays.

    Raises:
        UserError: an env that cannot restore a state.
    """
    _restorable(env).set_state(states.simulation)
    for buffer, history in zip(_buffers(env), states.histories, strict=True):
        buffer.copy_(history)
    return states.root.clone()


def _restorable(env: EnvBase) -> RestorableEnv:
    simulation = innermost(env)
    if not isinstance(simulation, RestorableEnv):
        raise UserError(f"{type(simulation).__name__} cannot go back to a state: give it get_state() and set_state()")
    return simulation


def _buffers(env: EnvBase) -> Iterator[Tensor]:
    for transform in transforms_of(env):
        if isinstance(transform, CatFrames):
            for name, buffer in transform.named_buffers(recurse=False):
                if name.startswith("_cat_buffers_"):
                    yield buffer
