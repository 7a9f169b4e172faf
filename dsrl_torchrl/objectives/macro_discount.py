"""``γ^k`` for any TorchRL loss and value estimator (Eq. 4)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule, TQCLoss
from torchrl.objectives.value import GAE, TD0Estimator, TDLambdaEstimator, ValueEstimatorBase

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY

LossOrEstimator = TypeVar("LossOrEstimator", bound=LossModule | ValueEstimatorBase)

#: k, as :class:`~dsrl_torchrl.latent_env.macro_step.MacroStep` writes it. The nested key: at the root lies the previous
#: macro step's.
STEPS_ENTRY = ("next", STEPS_KEY)
#: Where :class:`torchrl.data.MultiStep` keeps the reward that it has replaced.
MULTI_STEP_ENTRY = ("next", "original_reward")


def use_macro_discount(target: LossOrEstimator, gamma: float, lmbda: float | None = None) -> LossOrEstimator:
    """Makes ``target`` discount by ``γ^k``, k from each macro transition; changes it in place and returns it.

    With ``V`` the value that the loss bootstraps from, ``k_t`` the k of macro step t, ``terminated`` and ``done`` under
    ``"next"`` (a truncation is done, but bootstraps from the true ``s'``):

    - TD(0): ``y_t = R_t + γ^k_t (1 - terminated_t) V(s_{t+1})``;
    - GAE: ``δ_t = R_t + γ^k_t (1 - terminated_t) V(s_{t+1}) - V(s_t)``, ``A_t = δ_t + γ^k_t λ (1 - done_t) A_{t+1}``;
    - TD(λ): ``G_t = R_t + γ^k_t (1 - terminated_t) ((1 - λ) V(s_{t+1}) + λ G_{t+1})``, ``G_{t+1} = V(s_{t+1})`` at the
      end of an episode or batch.

    λ decays per macro step, not per env step: ``A = Σ_n (1 - λ) λ^{n-1} A^(n)`` averages the n-step advantages, and a
    step is one decision of the policy. ``A^(n) = Σ_{i<n} γ^{k_0 + ... + k_{i-1}} δ_i`` carries the discounts, whence
    ``A_t = δ_t + γ^k_t λ A_{t+1}``.

    A batch without the entry is refused. A loss without this call takes k = 1: it discounts every macro step by γ,
    however many env steps it took.

    What a loss makes later, by ``make_value_estimator``, bootstraps with ``γ^k`` too (γ and λ as they were, unless
    given), ``set_keys`` accepts ``steps_to_next_obs``, and ``in_keys`` names the entry.

    Args:
        target: a loss, whose estimator it is to use (by default the loss's own) may have been made before; or an
            estimator by itself, such as the ``GAE`` that a PPO script calls on its batches.
        gamma: discount per primitive step, the env's.
        lmbda: λ of GAE and TD(λ); as it is by default.

    Raises:
        UserError: for estimators other than TD(0), TD(λ) and GAE, whose recursions aren't known to be right, for
            losses without an estimator, and for ``TQCLoss``, which drops the next observation where k lies beside it.
    """
    _check_fraction("gamma", gamma)
    _check_fraction("lmbda", lmbda)
    if isinstance(target, TQCLoss):
        raise UserError(
            "TQCLoss can't discount by γ^k, it reads no next observation beside k: take SACLoss or REDQLoss"
        )
    if isinstance(target, LossModule):
        if target._value_estimator is not None:
            use_macro_discount(target._value_estimator, gamma, lmbda)
        if not isinstance(target, MacroDiscountLoss):
            target.__class__ = _macro_loss(type(target))  # type: ignore[arg-type]
        if target._value_estimator is None:
            target.make_value_estimator(gamma=gamma)
            use_macro_discount(target._value_estimator, gamma, lmbda)
        return target
    _discount_by_macro_steps(target)
    if lmbda is not None and not hasattr(target, "lmbda"):
        raise UserError(f"lmbda is of GAE and TD(λ), {_name(target)} has none: leave it out")
    for name, value in (("gamma", gamma), ("lmbda", lmbda)):
        if value is not None:  # a new tensor: TorchRL's is of integers where it got 1
            setattr(target, name, torch.tensor(float(value), device=getattr(target, name).device))
    return target


_in_keys = ValueEstimatorBase.in_keys.fget  # by super(), torch.compile finds the property itself


class _MacroDiscount(ValueEstimatorBase):
    """Mixed into an estimator of TorchRL, which raises γ to the entry if there is one: here there must be one."""

    @property
    def in_keys(self) -> list[NestedKey]:
        return [*_in_keys(self), self.tensor_keys.steps_to_next_obs]

    @dispatch
    def forward(self, tensordict: TensorDictBase, *args: Any, **kwargs: Any) -> TensorDictBase:
        self._check(tensordict)
        return super().forward(tensordict, *args, **kwargs)

    def value_estimate(self, tensordict: TensorDictBase, *args: Any, **kwargs: Any) -> Tensor:
        self._check(tensordict)
        return super().value_estimate(tensordict, *args, **kwargs)

    def _check(self, tensordict: TensorDictBase) -> None:
        steps = self.tensor_keys.steps_to_next_obs
        if isinstance(steps, str) or steps[0] != "next":
            raise UserError(
                f"steps_to_next_obs should be under 'next', got {steps!r}: at the root is the step before's"
            )
        if tensordict.get(steps, None) is None:
            raise UserError(
                f"the TD target needs {steps}, the number of env steps of each macro transition, but the batch has no "
                "such entry: keep it in the replay (Collector(compact_obs=False)), or set_keys(steps_to_next_obs=...) "
                "to its name"
            )
        if tensordict.get(MULTI_STEP_ENTRY, None) is not None:
            raise UserError(
                "the batch holds MultiStep's n-step returns, which discount every macro step by γ instead of γ^k: "
                "leave MultiStep out, or use TD(λ)"
            )


class MacroTD0Estimator(_MacroDiscount, TD0Estimator):
    """TD(0) with ``γ^k``."""


class MacroTDLambdaEstimator(_MacroDiscount, TDLambdaEstimator):
    """TD(λ) with ``γ^k``."""


class MacroGAE(_MacroDiscount, GAE):
    """GAE with ``γ^k``."""


_MACRO: dict[type, type] = {
    TD0Estimator: MacroTD0Estimator,
    TDLambdaEstimator: MacroTDLambdaEstimator,
    GAE: MacroGAE,
}


def _discount_by_macro_steps(estimator: ValueEstimatorBase) -> None:
    """Changes the class, so that whoever holds the estimator sees the change."""
    if isinstance(estimator, _MacroDiscount):
        return
    macro = _MACRO.get(type(estimator))
    if macro is None:
        raise UserError(
            f"{_name(estimator)} can't discount by γ^k: expected one of {', '.join(c.__name__ for c in _MACRO)}; "
            "TD(1) is TDLambdaEstimator with lmbda=1"
        )
    estimator.__class__ = macro
    estimator.set_keys(steps_to_next_obs=STEPS_ENTRY)
    if isinstance(estimator, TDLambdaEstimator):
        estimator.vectorized = False  # TorchRL's vectorised form holds λ in float32 where γ is a tensor: not in float64


class MacroDiscountLoss(LossModule if TYPE_CHECKING else object):  # type: ignore[misc]  # its metaclass wraps forward
    """Mixed into a loss: every estimator that it makes discounts by ``γ^k``."""

    _value_estimator: ValueEstimatorBase | None

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> Any:
        """As the loss's own, with ``γ^k``; γ per primitive step, and λ, stay as they were where they aren't given.

        Raises:
            UserError: if no gamma was ever given, or for an estimator that can't discount by ``γ^k``.
        """
        former, given = self._value_estimator, isinstance(value_type, ValueEstimatorBase)
        if not given and "gamma" not in hyperparams:
            if former is None:
                raise UserError(f"{_name(self)} has no discount: use_macro_discount(loss, gamma=...), the env's γ")
            hyperparams["gamma"] = former.gamma.item()
        try:
            super().make_value_estimator(value_type, **hyperparams)  # type: ignore[misc]
            _discount_by_macro_steps(self._value_estimator)
        except (NotImplementedError, UserError) as error:
            self._value_estimator = former
            raise UserError(f"{_name(self)}: {error}") from None
        made = self.value_estimator
        if former is not None:
            made.set_keys(steps_to_next_obs=former.tensor_keys.steps_to_next_obs)
            if not given and "lmbda" not in hyperparams and hasattr(former, "lmbda") and hasattr(made, "lmbda"):
                made.lmbda = former.lmbda
        return self

    def set_keys(self, **kwargs: Any) -> None:
        """As the loss's own; ``steps_to_next_obs`` too."""
        if "steps_to_next_obs" in kwargs:
            self.value_estimator.set_keys(steps_to_next_obs=kwargs.pop("steps_to_next_obs"))  # type: ignore[attr-defined]
        super().set_keys(**kwargs)  # type: ignore[misc]

    @property
    def in_keys(self) -> list[NestedKey]:  # type: ignore[override]
        """The loss's own, and k."""
        made = self._value_estimator
        return [*super().in_keys, STEPS_ENTRY if made is None else made.tensor_keys.steps_to_next_obs]

    @in_keys.setter
    def in_keys(self, keys: list[NestedKey]) -> None:
        super(MacroDiscountLoss, type(self)).in_keys.__set__(self, keys)


@cache
def _macro_loss(cls: type[LossModule]) -> type[LossModule]:
    """A subclass under the same name, as :mod:`torch.nn.utils.parametrize` makes them."""
    as_it_was = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    return type(cls.__name__, (MacroDiscountLoss, cls), as_it_was | {"__reduce_ex__": _reduce_macro_loss})


def _reduce_macro_loss(self: LossModule, protocol: Any) -> tuple[Any, ...]:
    """Pickle would find the loss's own class under the name of this one."""
    own: Any = type(self).__bases__[1]
    _, _, *state = own.__reduce_ex__(self, protocol)
    return _new_macro_loss, (own,), *state


def _new_macro_loss(cls: type[LossModule]) -> LossModule:
    made: Any = _macro_loss(cls)  # type: ignore[arg-type]
    return made.__new__(made)


def _check_fraction(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{name} must be between 0 and 1, got {value}")


def _name(module: Any) -> str:
    return type(module).__name__
