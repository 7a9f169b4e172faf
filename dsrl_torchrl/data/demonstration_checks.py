"""What a base policy would learn from demonstrations without a word: found before it is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.policies.content_hash import tensors_hash
from dsrl_torchrl.policies.normalisation import ACTION_QUANTILES, MIN_ACTION_HALF_RANGE, action_range, clip_outliers

#: How far outside of the controller's range is no rounding, in parts of the range.
RANGE_TOLERANCE = 1e-3
#: Actions that spread less in their own range, whose half is 1, leave most of it to outliers.
SQUEEZED_STD = 0.1


def demonstration_warnings(
    episodes: Sequence[Episode],
    low: Tensor | None = None,
    high: Tensor | None = None,
    *,
    action_scaling: str = "minmax",
) -> list[str]:
    """One line for each thing about demonstrations that a base policy would learn from all the same.

    Args:
        episodes: at least one, all of the same sizes.
        low: lowest action that the controller takes, ``[action_dim]``; ``None`` where it is not known.
        high: the highest.
        action_scaling: what :func:`~dsrl_torchrl.training.behaviour_cloning.train_base_policy` will get.
    """
    actions = torch.cat([episode.action for episode in episodes])  # (n, action_dim)
    found = [_repeated(episodes)]
    if low is not None and high is not None:
        found.append(_outside(actions, low.cpu(), high.cpu()))
    if action_scaling == "minmax":
        found.append(_squeezed(actions))
    return [line for line in found if line is not None]


def _repeated(episodes: Sequence[Episode]) -> str | None:
    hashes = [tensors_hash({"action": e.action, **_named(e)}) for e in episodes]
    again = [i for i, value in enumerate(hashes) if value in hashes[:i]]
    if not again:
        return None
    return (
        f"{len(again)} of {len(episodes)} demonstrations repeat an earlier one, the first is number {again[0]}, which "
        f"is number {hashes.index(hashes[again[0]])} again: they count as often as they are there"
    )


def _named(episode: Episode) -> dict[str, Tensor]:
    return {str(key): value for key, value in episode.observations.items(True, True)}


def _outside(actions: Tensor, low: Tensor, high: Tensor) -> str | None:
    beyond = torch.maximum(low - actions, actions - high)  # (n, action_dim)
    outside = (beyond > RANGE_TOLERANCE * (high - low)).any(-1)
    if not outside.any():
        return None
    worst = int(beyond.amax(0).argmax())
    return (
        f"{int(outside.sum())} of {len(actions)} demonstrated actions lie outside of the controller's range, by up to "
        f"{float(beyond[:, worst].max()):.3g} in dimension {worst} ([{low[worst]:g}, {high[worst]:g}]): the simulator "
        "clips them, the base policy learns them as they are; clip them in the file, or record with this controller"
    )


def _squeezed(actions: Tensor) -> str | None:
    low, high = action_range(actions, actions.shape[-1])
    half_range = (high - low) / 2
    std = actions.std(0, correction=0) / half_range
    clipped = clip_outliers(actions)
    kept = (clipped.amax(0) - clipped.amin(0)) / (high - low)
    squeezed = (std < SQUEEZED_STD) & (kept < 0.5) & (half_range > 2 * MIN_ACTION_HALF_RANGE)
    if not squeezed.any():
        return None
    worst = int(std.where(squeezed, torch.inf).argmin())
    inside = ACTION_QUANTILES[1] - ACTION_QUANTILES[0]
    return (
        f"{inside:.0%} of the demonstrated actions of dimension {worst} lie in {float(kept[worst]):.0%} of the range "
        f"[{low[worst]:.3g}, {high[worst]:.3g}]: a few outliers squeeze all others in the base policy's scale; "
        "base_policy.training.action_scaling=quantile clips them"
    )
