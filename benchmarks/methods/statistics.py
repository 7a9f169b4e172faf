"""Success over seeds: the interquartile mean with stratified bootstrap intervals (Agarwal et al., 2021, 2108.13264).

The two definitions of ``rliable``, which would bring pandas, arch, statsmodels and seaborn along for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dsrl_torchrl.evaluation.rates import Rate, wilson_interval

RESAMPLES = 5_000
LEVEL = 0.95


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half of the last axis, ``[*B, n]`` -> ``[*B]``: ``int(n / 4)`` are cut at both ends.

    As ``scipy.stats.trim_mean(scores, 0.25)``, which ``rliable`` takes: of three runs none is cut.
    """
    cut = int(0.25 * scores.shape[-1])
    return np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut].mean(-1)


def stratified_bootstrap(scores: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the interquartile mean over all runs of all tasks.

    Args:
        scores: of each task's runs; a resample draws as many runs of every task, with replacement.
        seed: of the resampling.
    """
    random = np.random.default_rng(seed)
    drawn = [np.asarray(runs)[random.integers(len(runs), size=(RESAMPLES, len(runs)))] for runs in scores]
    low, high = np.quantile(interquartile_mean(np.concatenate(drawn, axis=1)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def success(counts: Sequence[Sequence[tuple[int, int]]]) -> Rate:
    """Success of a method from ``(successes, episodes)`` of each run of each task; ``n`` counts the episodes.

    One run: its rate with Wilson's interval. Several: their interquartile mean with the bootstrap's, widened to that of
    Wilson for all episodes: three runs that happen to agree would have none.
    """
    runs = [run for task in counts for run in task]
    successes, episodes = (sum(column) for column in zip(*runs, strict=True))
    low, high = wilson_interval(successes, episodes)
    if len(runs) == 1:
        return Rate(successes / episodes, low, high, episodes)
    scores = [[successes / n for successes, n in task] for task in counts]
    mean = float(interquartile_mean(np.concatenate([np.asarray(task) for task in scores])))
    least, most = stratified_bootstrap(scores)
    return Rate(mean, min(low, least), max(high, most), episodes)


def compare(first: Rate, second: Rate) -> int:
    """1 or -1 where the intervals are apart and the first is better or worse; 0 where they overlap."""
    if first.low > second.high:
        return 1
    return -1 if first.high < second.low else 0
