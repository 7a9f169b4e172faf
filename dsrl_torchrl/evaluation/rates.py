"""Success rates with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: The normal distribution's 97.5 % quantile.
Z = 1.959964


@dataclass(frozen=True)
class Rate:
    """A success rate with its Wilson 95 % interval over ``n`` episodes."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a binomial rate (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    # In floats an interval of 4 of 4 ends below 1.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def make_rate(outcomes: Sequence[bool]) -> Rate:
    """The rate of ``True`` with its interval."""
    successes, n = sum(map(bool, outcomes)), len(outcomes)
    return Rate(successes / max(n, 1), *wilson_interval(successes, n), n)
