"""Polyak averaging of target networks (Eq. 11), in float32 whatever the networks compute in."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import TensorDictParams
from torch import Tensor
from torchrl.objectives import SoftUpdate


class PolyakAverage:
    """``target <- (1 - τ) target + τ source`` for several tensors, in place.

    A target of 16 bits is the rounded value of an average kept in float32. bfloat16 has 8 significant bits: with
    τ = 0.005 a step that is smaller than half a unit in the target's last place is undone by rounding every time, and
    the target never moves while its source is within some 40 % of it. RLinf's "float32 EMA shadow" does the same.

    Args:
        targets, sources: the same shapes in the same order.
        tau: τ.
    """

    def __init__(self, targets: Iterable[Tensor], sources: Iterable[Tensor], tau: float) -> None:
        self.targets, self.sources, self.tau = list(targets), list(sources), tau
        narrow = any(target.itemsize < 4 for target in self.targets)
        self._averages = [target.detach().float() for target in self.targets] if narrow else None

    @torch.no_grad()
    def step(self) -> None:
        """Moves the targets once."""
        sources = [source.detach() for source in self.sources]
        if self._averages is None:
            torch._foreach_lerp_(self.targets, sources, self.tau)
            return
        for target, average in zip(self.targets, self._averages, strict=True):
            # What a checkpoint or anybody else has put there is where the average goes on.
            average.copy_(torch.where(target == average.to(target.dtype), average, target.float()))
        torch._foreach_lerp_(self._averages, [source.float() for source in sources], self.tau)
        torch._foreach_copy_(self.targets, self._averages)


class PolyakUpdate(SoftUpdate):
    """TorchRL's :class:`~torchrl.objectives.SoftUpdate`, whose own step makes two TensorDicts of ``.data`` first.

    Targets of 16 bits move as :class:`PolyakAverage` says.
    """

    @torch.no_grad()
    def _step(self, p_source: TensorDictParams, p_target: TensorDictParams) -> None:
        averages: dict[int, PolyakAverage | None] = self.__dict__.setdefault("_averages", {})
        if id(p_target) not in averages:
            targets, sources = ([*params.values(True, True, sort=True)] for params in (p_target, p_source))
            narrow = any(target.itemsize < 4 for target in targets)
            averages[id(p_target)] = PolyakAverage(targets, sources, 1 - self.eps) if narrow else None
        average = averages[id(p_target)]
        if average is None:
            p_target.lerp_(p_source, 1 - self.eps)
        else:
            average.step()
