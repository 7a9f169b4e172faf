"""What every reader checks of an episode: sizes that fit the task and the others, and finite numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.errors import NonFiniteError, UserError


def check_sizes(
    episode: Episode, action_dim: int | None, shapes: Mapping[NestedKey, Sequence[int]], where: str
) -> None:
    """Raises :class:`UserError` for actions or observations that are not of the task's sizes."""
    if action_dim is not None and episode.action.shape[-1] != action_dim:
        raise UserError(f"{where} has {episode.action.shape[-1]}-d actions, the task has {action_dim}-d ones")
    for key, shape in shapes.items():
        recorded = list(episode.observations.get(key).shape[1:])
        if recorded != list(shape):
            raise UserError(f"{where} has {entry_name(key)} of shape {recorded}, the task has {list(shape)}")


def check_same_sizes(episode: Episode, first: Episode, where: str) -> None:
    """Raises :class:`UserError` for sizes that are not those of the ``first`` episode."""
    sizes = [
        {"actions": list(e.action.shape[1:])}
        | {entry_name(key): list(value.shape[1:]) for key, value in e.observations.items(True, True)}
        for e in (episode, first)
    ]
    for name, size in sizes[0].items():
        if size != sizes[1][name]:
            raise UserError(f"{where} has {name} of shape {size}, the episodes before it have {sizes[1][name]}")


def check_finite(observations: TensorDictBase, action: Tensor, where: str) -> None:
    """Raises :class:`NonFiniteError` with the quantity, the episode and the step."""
    for key, value in [*observations.items(True, True), ("action", action)]:
        bad = ~torch.isfinite(value).flatten(1).all(1)  # (T or T + 1,)
        if bad.any():
            raise NonFiniteError(f"{entry_name(key)} in {where}", int(bad.int().argmax()), unit="step")
