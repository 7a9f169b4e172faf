"""Noise layouts compared by driving the env: what the base policy is worth under each, and how it jumps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from tensordict import TensorDictBase

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.rates import Rate, make_rate
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.noise_layout import NOISE_LAYOUTS, NoiseLayout
from dsrl_torchrl.policies.probe import LOW_SPREAD
from dsrl_torchrl.steerability.chunk_jumps import ChunkJumps, chunk_jumps
from dsrl_torchrl.steerability.noise_response import noise_response
from dsrl_torchrl.steerability.prior_rollouts import PriorRollouts

# The widest noise that we have steered with an own noise for every step has 32 dims; dsrl_pi0 repeats one step's noise
# where a chunk would have 50 x 32.
MAX_LATENT_DIM = 64
#: Layouts that give every executed step a noise of its own.
PER_STEP = ("full", "act_horizon")


@dataclass(frozen=True)
class LayoutTrial:
    """The base policy under the prior noise of one layout.

    Attributes:
        name: noise layout.
        dim: size of the latent action.
        success: of one episode from each reset, the same resets for every layout, with its Wilson 95 % interval. A
            layout changes the distribution of chunks, so under each the base is another policy.
        spread: standard deviation over noises of the executed action, in half ranges.
        jumps: between chunks and within them, in closed loop.
    """

    name: str
    dim: int
    success: Rate
    spread: float
    jumps: ChunkJumps


def different_layouts(layout: NoiseLayout) -> list[str]:
    """The layouts that differ for these horizons, ``layout`` itself first.

    A layout that steers as many dims as ``full`` is ``full``: ``act_horizon`` where every step of the noise is
    executed, and all of them for a single step of noise. ``interpolated`` is a family of layouts: it is tried where it
    is ``layout``.
    """
    dims = {"full": replace(layout, name="full").dim}
    for name in NOISE_LAYOUTS:
        if name == "interpolated" != layout.name:
            continue
        with suppress(UserError):  # act_horizon, where not every executed step has a noise
            dims[name] = replace(layout, name=name).dim
    same = [name for name in dims if dims[name] == dims["full"]]
    kept = layout.name if layout.name in same else "full"
    return [layout.name, *(name for name in dims if name != layout.name and (name not in same or name == kept))]


def layout_trial(
    env: LatentActionEnv, rollouts: PriorRollouts, observations: TensorDictBase, seed: int = 0
) -> LayoutTrial:
    """Sums up one layout.

    Args:
        env: in that layout.
        rollouts: of the prior in that layout; success counts the first episode from each reset.
        observations: ``[N]``, the base policy's entries, the same for every layout.
        seed: of the noises.
    """
    decoder = env.decoder
    response = noise_response(decoder, observations, scales=(1.0,), seed=seed)
    return LayoutTrial(
        decoder.layout.name,
        decoder.layout.dim,
        make_rate(rollouts.success[0].tolist()),
        response.spread[0],
        chunk_jumps(rollouts, decoder.base_policy),
    )


def recommend_layout(trials: Sequence[LayoutTrial]) -> str:
    """The noise layout to train with.

    Kept are the layouts under which the base is not clearly worse (the Wilson interval of its success reaches the best
    layout's rate) and that leave something to steer (a spread of at least ``LOW_SPREAD``; all if none does). Of these:
    the fewest dims that still give every executed step its own noise (``act_horizon`` where the chunk is longer than
    what is executed, else ``full``), or, when that takes more than 64, the fewest dims of all.
    """
    best = max(trial.success.value for trial in trials)
    kept = [trial for trial in trials if trial.success.high >= best]
    kept = [trial for trial in kept if trial.spread >= LOW_SPREAD] or kept
    per_step = [trial for trial in kept if trial.name in PER_STEP and trial.dim <= MAX_LATENT_DIM]
    return min(per_step or kept, key=lambda trial: trial.dim).name
