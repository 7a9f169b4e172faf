"""Best-of-N headroom: what the right choice among noises could gain, measured before any training."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

from torch import Tensor

from dsrl_torchrl.evaluation.rates import Rate, make_rate


@dataclass(frozen=True)
class Headroom:
    """Success of the best of k prior-noise episodes from the same reset.

    Where the env is deterministic, a success shows a sequence of noises that solves this start, so success@N is a lower
    bound of what steering can reach. It is no promise: a policy must find that sequence from observations alone.

    Attributes:
        success_at_k: for k = 1 to N, averaged over resets: the unbiased estimate ``1 - C(N - c, k) / C(N, k)`` from
            c successes in N episodes (pass@k of Chen et al. 2021, arXiv 2107.03374, equation 1).
        success_at_n: success@N with its Wilson 95 % interval over resets.
    """

    success_at_k: tuple[float, ...]
    success_at_n: Rate

    @property
    def success_at_1(self) -> float:
        """Success of the base policy."""
        return self.success_at_k[0]

    @property
    def repeats(self) -> int:
        """N, the episodes from each reset."""
        return len(self.success_at_k)


@dataclass(frozen=True)
class ReturnHeadroom:
    """The same where no success is known: returns of prior-noise episodes from the same reset, averaged over resets.

    Attributes:
        mean: of one episode.
        best: of the best of N.
    """

    mean: float
    best: float


def best_return(returns: Tensor) -> ReturnHeadroom:
    """The headroom from the returns ``[N, R]`` of N episodes from each of R resets."""
    returns = returns.double()  # where all episodes are alike, both are the same
    return ReturnHeadroom(float(returns.mean(0).mean()), float(returns.amax(0).mean()))


def best_of_n(success: Tensor) -> Headroom:
    """The headroom from episode outcomes ``[N, R]`` bool: N episodes from each of R resets."""
    n = len(success)
    counts = success.sum(0).tolist()
    at_k = [sum(1 - comb(n - c, k) / comb(n, k) for c in counts) / len(counts) for k in range(1, n + 1)]
    return Headroom(tuple(at_k), make_rate([c > 0 for c in counts]))
