"""What a run's curve says: the running success, and how long it stayed below a reference."""

from __future__ import annotations

from collections.abc import Sequence

SUCCESS = "env/success_running"


def longest_dip(curve: Sequence[tuple[float, float]], reference: float, margin: float = 0.10) -> float:
    """The longest stretch, in env steps, that a curve stayed more than ``margin`` below ``reference``.

    Args:
        curve: ``(env_steps, success)`` in order.
        reference: success of the base policy, or of stage 1.
        margin: how far below counts as a dip.
    """
    longest, start, previous = 0.0, None, 0.0
    for step, success in curve:
        if success < reference - margin:
            # A point stands for the stretch since the one before it.
            start = previous if start is None else start
            longest = max(longest, step - start)
        else:
            start = None
        previous = step
    return longest


def success_curve(rows: Sequence[dict[str, float]]) -> list[tuple[float, float]]:
    """``(env_steps, running success)`` from the rows of ``metrics.csv``."""
    return [(row["env_steps"], row[SUCCESS]) for row in rows if SUCCESS in row]
