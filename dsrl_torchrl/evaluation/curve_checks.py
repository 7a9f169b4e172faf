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


def curve_warnings(rows: Sequence[dict[str, float]], latent_dim: int) -> list[str]:
    """What SPEC §5 asks of the curves of stage 2, in one line for each that is not met.

    Args:
        rows: of ``metrics.csv``.
        latent_dim: size of the noise, for the entropy.
    """
    warnings = []
    td_error = _quarters([row["sac/td_error"] for row in rows if "sac/td_error" in row])
    if td_error and td_error[1] > 2 * td_error[0]:
        warnings.append(f"the TD error doubled ({td_error[0]:.2g} to {td_error[1]:.2g}): lower the learning rates")
    q = _quarters([abs(row["sac/q_mean"]) for row in rows if "sac/q_mean" in row])
    if q and q[1] > 3 * max(q[0], 1.0):
        warnings.append(f"|Q| tripled ({q[0]:.3g} to {q[1]:.3g}): over-estimation; more critics, or a smaller actor_lr")
    alphas = [row["sac/alpha"] for row in rows if "sac/alpha" in row]
    if alphas and alphas[-1] > 10 * alphas[0]:
        warnings.append(f"the temperature ran away ({alphas[0]:.2g} to {alphas[-1]:.2g}): lower target_entropy_per_dim")
    entropies = [row["actor/policy_entropy"] for row in rows if "actor/policy_entropy" in row]
    early = entropies[: max(1, len(entropies) // 10)]
    if early and min(early) < -2.0 * latent_dim:
        warnings.append(
            f"the policy's entropy collapsed at once (to {min(early):.0f} for {latent_dim} noise dimensions): raise "
            "alpha_init or critic_only_updates"
        )
    return warnings


def _quarters(values: Sequence[float]) -> tuple[float, float] | None:
    """Means of the first and the last quarter; ``None`` for fewer than 8 values."""
    n = len(values) // 4
    return (sum(values[:n]) / n, sum(values[-n:]) / n) if n > 1 else None
