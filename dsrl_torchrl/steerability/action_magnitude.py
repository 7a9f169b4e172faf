"""``action_magnitude: auto``: the noise bound, picked by decoding the noise box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.steerability.noise_aliasing import SAME_ACTION
from dsrl_torchrl.steerability.noise_response import clipped_share, decode_normalised, prior_noises

#: The official runs use 1.0 to 2.5.
CANDIDATES = (1.0, 1.25, 1.5, 2.0, 2.5)

#: What is taken when the noise moves no action, so that nothing can be measured: the default of the official runs.
DEFAULT_MAGNITUDE = 1.5

#: The prior's own range of an action: from its 5 % to its 95 % quantile over noises.
PRIOR_RANGE = (0.05, 0.95)

# Between the shares outside at corners of 1.5, where bases driven by random corners kept most of their success, and at
# corners of 2.0, where they lost it.
MAX_OUTSIDE = 0.45
MAX_EXTRA_CLIPPED = 0.1
MIN_REACH = 0.5

OBSERVATIONS = 64
PRIOR_NOISES = 64
CORNERS = 16
BOX_NOISES = 8


@dataclass(frozen=True)
class BoundResponse:
    """The executed actions of one noise box, ``|w_i| <= m``, against the prior's.

    Attributes:
        magnitude: m, in standard deviations of the prior.
        outside: at random corners ``w ∈ {-m, m}^dim``, the share of actions beyond the prior's own range (5 % to 95 %
            quantile) at the same observation, among the actions that noise moves.
        clipped: for uniform noise in the box, the share of actions at an end of the action range: the part of the box
            where a learner moves without effect.
        reach: at random corners, the mean distance from the middle of the prior's own range, in units of the ranges'
            mean half width, over the same actions: 1 is its end, ``m / 1.645`` for an affine decoder with an own noise
            for each action.
    """

    magnitude: float
    outside: float
    clipped: float
    reach: float


@dataclass(frozen=True)
class MagnitudeChoice:
    """The chosen noise bound and what was measured for it.

    Attributes:
        value: ``action_magnitude``.
        reason: one line.
        table: one row per candidate, ascending.
        prior_clipped: share of the prior's actions at an end of the action range.
    """

    value: float
    reason: str
    table: tuple[BoundResponse, ...]
    prior_clipped: float


def choose_action_magnitude(
    decoder: NoiseDecoder, observations: TensorDictBase, *, candidates: Sequence[float] = CANDIDATES, seed: int = 0
) -> MagnitudeChoice:
    """The widest noise box whose corners still decode to what the base policy itself might do.

    A learner drives the noise into the corners of its box (the actor climbs Q^W, the squashing saturates), and only the
    prior vouches for what comes out there. So the choice is the largest candidate m at which

    - at most 0.45 of the actions at random corners lie outside the prior's own range at that observation, and
    - uniform noise in the box has at most 0.1 more of its actions clipped than the prior;

    the smallest one if none qualifies. If the chosen corners do not get half-way to the ends of the prior's range
    (reach below 0.5: a base that reacts to large noise only), the next candidate that does is taken, because a box that
    cannot make the base's own chunks loses its success.

    A decoder that is affine in the noise, with an own noise for each action, gets 1.5 (its corners are outside from
    1.645 on); one that mixes many noises into each action 2.0; one that saturates more, one that breaks off less.
    Costs 184 forward passes of batch 64. Deterministic.

    Args:
        decoder: base policy and noise layout; its own bound does not matter.
        observations: ``[N]``, the base policy's entries, a few hundred that it meets; 64 random ones are used.
        candidates: bounds to choose from, in standard deviations of the prior.
        seed: of observations, noises and corners.

    Raises:
        UserError: no candidates, or one that is not positive; no observations.
    """
    if not candidates or min(candidates) <= 0:
        raise UserError(f"candidates for action_magnitude must be positive numbers, got {list(candidates)}")
    if not len(observations):
        raise UserError("action_magnitude: auto needs observations to decode at, got none")
    table, prior_clipped, responds = measure_bounds(decoder, observations, sorted(candidates), seed=seed)
    if not responds:
        reason = (
            f"action_magnitude {DEFAULT_MAGNITUDE}: the default, since the noise moves no action of this base policy"
        )
        return MagnitudeChoice(DEFAULT_MAGNITUDE, reason, table, prior_clipped)
    row = pick_bound(table, prior_clipped)
    wider = [other for other in table if other.magnitude > row.magnitude]
    next_one = f"; at {wider[0].magnitude:g}: {wider[0].outside:.0%} and {wider[0].clipped:.0%}" if wider else ""
    reason = (
        f"action_magnitude {row.magnitude:g}: {row.outside:.0%} of the actions at the corners of this noise box lie "
        f"outside the prior's own range (limit {MAX_OUTSIDE:.0%}), {row.clipped:.0%} inside of it are clipped "
        f"(limit {prior_clipped + MAX_EXTRA_CLIPPED:.0%}){next_one}"
    )
    return MagnitudeChoice(row.magnitude, reason, table, prior_clipped)


def pick_bound(table: Sequence[BoundResponse], prior_clipped: float) -> BoundResponse:
    """The rule of :func:`choose_action_magnitude` on measured rows in ascending order."""
    safe = [row for row in table if row.outside <= MAX_OUTSIDE and row.clipped <= prior_clipped + MAX_EXTRA_CLIPPED]
    chosen = safe[-1] if safe else table[0]
    if chosen.reach >= MIN_REACH:
        return chosen
    wider = [row for row in table if row.magnitude > chosen.magnitude]
    return next((row for row in wider if row.reach >= MIN_REACH), table[-1])


@torch.no_grad()
def measure_bounds(
    decoder: NoiseDecoder, observations: TensorDictBase, magnitudes: Sequence[float], *, seed: int = 0
) -> tuple[tuple[BoundResponse, ...], float, bool]:
    """Decodes the prior, and corners and inside of every noise box, at the same observations.

    Args:
        decoder: base policy and noise layout.
        observations: ``[N]``, the base policy's entries; 64 random ones are used.
        magnitudes: bounds m, in standard deviations of the prior. The same random numbers for every m.
        seed: of observations, noises and corners.

    Returns:
        One row per bound, the prior's clipped share, and whether any action responds to the noise at all (its range
        over the prior is wider than 0.02).
    """
    order = torch.randperm(len(observations), generator=torch.Generator().manual_seed(seed))
    observations = observations[order[:OBSERVATIONS].to(observations.device)]
    prior = decode_normalised(decoder, observations, prior_noises(decoder, PRIOR_NOISES, len(observations), seed=seed))
    signs = prior_noises(decoder, CORNERS, len(observations), seed=seed + 1).sign()
    low, high = torch.quantile(prior, prior.new_tensor(PRIOR_RANGE), dim=0)  # (N, H_a, A) each
    inside = torch.rand(BOX_NOISES, *signs.shape[1:], generator=torch.Generator().manual_seed(seed + 2)).to(signs)
    # An action that ignores the noise is inside for every bound and would hide what the others do.
    moved = high - low > 2 * SAME_ACTION
    middle, total_width = (high + low) / 2, float(((high - low) / 2 * moved).sum())

    def respond(magnitude: float) -> BoundResponse:
        corners = decode_normalised(decoder, observations, magnitude * signs)
        outside = (corners < low - SAME_ACTION) | (corners > high + SAME_ACTION)
        share = float((outside & moved).sum()) / max(CORNERS * int(moved.sum()), 1)
        distance = float(((corners - middle).abs() * moved).sum()) / CORNERS
        clipped = clipped_share(decode_normalised(decoder, observations, magnitude * (2 * inside - 1)))
        return BoundResponse(float(magnitude), share, clipped, distance / max(total_width, 1e-12))

    return tuple(respond(magnitude) for magnitude in magnitudes), clipped_share(prior), bool(moved.any())
