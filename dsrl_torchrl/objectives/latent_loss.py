"""What the losses of ours share: keys that can be renamed, what they read, and references that are no parameters."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule

from dsrl_torchrl.errors import UserError

BACKUPS = ("min", "mean")
REDUCTIONS = ("none", "mean", "sum")


class LatentLoss(LossModule):
    """A TorchRL loss on macro transitions.

    A subclass says what it reads (:meth:`reads`) and keeps functions of other modules by :meth:`refer`.
    """

    def set_keys(self, **kwargs: NestedKey) -> None:
        """Renames tensordict keys; those of ``_AcceptedKeys``."""
        super().set_keys(**kwargs)
        self._in_keys: list[NestedKey] | None = None

    @abstractmethod
    def reads(self) -> list[NestedKey]:
        """Everything that :meth:`forward` reads."""

    @property
    def in_keys(self) -> list[NestedKey]:
        """Everything that :meth:`forward` reads."""
        own = self.__dict__.get("_in_keys")
        return list(dict.fromkeys(self.reads())) if own is None else own

    @in_keys.setter
    def in_keys(self, keys: list[NestedKey]) -> None:
        self._in_keys = keys

    def refer(self, **functions: Any) -> None:
        """Keeps functions of other modules, in ``__dict__``: as attributes they would become parts of the loss."""
        self.__dict__.update(functions)


def with_batch_of(tensordict: TensorDictBase, vector: Tensor) -> TensorDictBase:
    """A batch ``[*B]``, where a call with keywords that names one vector ``[*B, d]`` alone would take d for another."""
    if tensordict.ndim < vector.ndim:
        return tensordict
    tensordict = tensordict.copy()
    tensordict.batch_size = vector.shape[:-1]
    return tensordict


def check_ensemble(num_critics: int, backup: str = "min") -> None:
    """Raises :class:`UserError` for an ensemble without members or an unknown reduction of it."""
    if num_critics < 1:
        raise UserError(f"num_critics must be at least 1, got {num_critics}")
    if backup not in BACKUPS:
        raise UserError(f"backup must be one of {', '.join(BACKUPS)}; got {backup!r}")


def check_reduction(reduction: str | None) -> str:
    """``mean`` for ``None``, as in TorchRL's losses; raises :class:`UserError` for an unknown one."""
    if reduction is not None and reduction not in REDUCTIONS:
        raise UserError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    return "mean" if reduction is None else reduction
