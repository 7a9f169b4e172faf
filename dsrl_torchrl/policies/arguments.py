"""Checks of constructor arguments: the message says what is allowed and what was given."""

from __future__ import annotations

from dsrl_torchrl.errors import UserError


def positive_int(name: str, value: object, at_least: int = 1) -> int:
    """``value`` itself when it is an integer ``>= at_least``; raises :class:`UserError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UserError(f"{name} must be an integer of at least {at_least}, got {value!r}")
    return value
