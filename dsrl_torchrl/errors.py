"""What can go wrong by a user's hand: printed as one line by the command, exit code 1."""

from __future__ import annotations


class UserError(ValueError):
    """A user's mistake: the message says what was expected, what came and what to do, in one line."""


class CheckpointError(UserError):
    """A checkpoint that is missing, truncated, foreign, or does not fit."""


class NonFiniteError(UserError):
    """NaN or infinity, caught where it is born.

    Args:
        quantity: what is not finite, e.g. ``loss_qvalue`` or ``next.reward``.
        step: where: the env step, gradient update or file position, as the caller says in ``unit``.
        unit: what ``step`` counts.
        hint: what to do about it.
    """

    def __init__(self, quantity: str, step: int | str, unit: str = "env step", hint: str = "") -> None:
        self.quantity, self.step = quantity, step
        super().__init__(f"{quantity} is NaN or infinite at {unit} {step}" + (f"; {hint}" if hint else ""))


def positive_int(name: str, value: object, at_least: int = 1) -> int:
    """``value`` itself when it is an integer ``>= at_least``; raises :class:`UserError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UserError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return value
