"""What a run's curve says: its warning signs, its running success and how long that stayed below a reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

SUCCESS = "env/success_running"
#: How far below its reference a curve is in a dip.
DIP = 0.10

Rows = Sequence[dict[str, float]]
#: Metrics drawn in one panel of a figure, each with its label, and the panel's title.
Panel = tuple[Mapping[str, str], str]
#: ``(rows of metrics.csv, latent_dim)`` -> a warning in one line, or ``None``. An agent lists those that concern it.
CurveCheck = Callable[[Rows, int], str | None]


def curve_warnings(rows: Rows, latent_dim: int, checks: Sequence[CurveCheck]) -> list[str]:
    """The warnings of all ``checks`` that a run's curves do not pass.

    Args:
        rows: of ``metrics.csv``.
        latent_dim: size of the noise, for checks per dimension.
        checks: e.g. an agent's ``curve_checks``.
    """
    warnings = [check(rows, latent_dim) for check in checks]
    return [warning for warning in warnings if warning is not None]


def grew(metric: str, factor: float, hint: str, *, floor: float = 0.0) -> CurveCheck:
    """Warns if the mean ``|metric|`` of the last quarter is over ``factor`` times that of the first.

    Fewer than 8 values say nothing.

    Args:
        metric: name of the column.
        factor: of growth that is allowed.
        hint: what to do about it.
        floor: smaller means of the first quarter count as this.
    """

    def check(rows: Rows, latent_dim: int) -> str | None:
        values = [abs(value) for value in _column(rows, metric)]
        n = len(values) // 4
        if n < 2:
            return None
        first, last = sum(values[:n]) / n, sum(values[-n:]) / n
        if last <= factor * max(first, floor):
            return None
        return f"|{metric}| grew over {factor:g}-fold ({first:.3g} to {last:.3g}): {hint}"

    return check


def ran_away(metric: str, factor: float, hint: str) -> CurveCheck:
    """Warns if the last value is over ``factor`` times the first, for metrics such as α; of one that began at 0 never.

    Args:
        metric: name of the column.
        factor: of growth that is allowed.
        hint: what to do about it.
    """

    def check(rows: Rows, latent_dim: int) -> str | None:
        values = _column(rows, metric)
        if not values or not 0 < values[0] < values[-1] / factor:
            return None
        return f"{metric} ran away ({values[0]:.2g} to {values[-1]:.2g}): {hint}"

    return check


def collapsed_early(metric: str, per_dim: float, hint: str) -> CurveCheck:
    """Warns if the first tenth of a curve falls below ``per_dim`` per noise dimension, e.g. the entropy.

    Args:
        metric: name of the column.
        per_dim: lowest value allowed, per noise dimension.
        hint: what to do about it.
    """

    def check(rows: Rows, latent_dim: int) -> str | None:
        values = _column(rows, metric)
        early = values[: max(1, len(values) // 10)]
        if not early or min(early) >= per_dim * latent_dim:
            return None
        return f"{metric} collapsed at once (to {min(early):.0f} for {latent_dim} noise dimensions): {hint}"

    return check


def success_curve(rows: Rows) -> list[tuple[float, float]]:
    """``(env_steps, running success)`` from the rows of ``metrics.csv``."""
    return [(row["env_steps"], row[SUCCESS]) for row in rows if SUCCESS in row]


def longest_dip(curve: Sequence[tuple[float, float]], reference: float) -> float:
    """The longest stretch, in env steps, that a curve stayed more than :data:`DIP` below ``reference``.

    Args:
        curve: ``(env_steps, success)`` in order; what lies before its first point was not measured, and does not count.
        reference: success of the base policy, or of stage 1.
    """
    longest, start, previous = 0.0, None, curve[0][0] if curve else 0.0
    for step, success in curve:
        if reference - success > DIP + 1e-9:  # 0.56 - 0.46 is more than 0.1 in floats
            # A point stands for the stretch since the one before it.
            start = previous if start is None else start
            longest = max(longest, step - start)
        else:
            start = None
        previous = step
    return longest


def _column(rows: Rows, metric: str) -> list[float]:
    return [row[metric] for row in rows if metric in row]
