"""Noise layouts compared by driving the env: what the base policy is worth under each, and how it jumps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dsrl_torchrl.steerability.chunk_jumps import ChunkJumps, chunk_jumps
from dsrl_torchrl.steerability.noise_response import noise_response
from dsrl_torchrl.steerability.prior_rollouts import PriorRollouts
from dsrl_torchrl.evaluation.evaluate import Rate, make_rate
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.noise_layout import NOISE_LAYOUTS, NoiseLayout
from dsrl_torchrl.policies.probe import LOW_SPREAD

# The widest noise that we have steered with an own noise for every step has 32 dims; dsrl_pi0 repeats one step's noise
# where a chunk would have 50 x 32.
MAX_LATENT_DIM = 64


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

    ``full`` and ``act_horizon`` are the same where the whole chunk is executed.
    """
    same = {"full", "act_horizon"} if layout.act_horizon == layout.pred_horizon else set()
    others = [name for name in NOISE_LAYOUTS if name != layout.name and not {name, layout.name} <= same]
    if layout.name == "repeat" and same:
        others.remove("act_horizon")
    return [layout.name, *others]


def layout_trial(env: LatentActionEnv, rollouts: PriorRollouts, observations: Tensor, seed: int = 0) -> LayoutTrial:
    """Sums up one layout.

    Args:
        env: in that layout.
        rollouts: of the prior in that layout; success counts the first episode from each reset.
        observations: ``[N, obs]`` in env units, the same for every layout.
        seed: of the noises.
    """
    decoder = env.decoder
    response = noise_response(decoder, observations, scales=(1.0,), seed=seed)
    return LayoutTrial(
        decoder.layout.name,
        decoder.layout.dim,
        make_rate(rollouts.success[0].tolist()),
        response.spread[0],
        chunk_jumps(rollouts, decoder.base_policy.normalisation),
    )


def recommend_layout(trials: Sequence[LayoutTrial]) -> str:
    """The noise layout to train with.

    Kept are the layouts under which the base is not clearly worse (the Wilson interval of its success reaches the best
    layout's rate) and that leave something to steer (a spread of at least 0.05; all if none does). Of these: the fewest
    dims that still give every executed step its own noise (``act_horizon`` where the chunk is longer than what is
    executed, else ``full``), or, when that takes more than 64, the fewest dims of all.
    """
    best = max(trial.success.value for trial in trials)
    kept = [trial for trial in trials if trial.success.high >= best]
    kept = [trial for trial in kept if trial.spread >= LOW_SPREAD] or kept
    per_step = [trial for trial in kept if trial.name != "repeat" and trial.dim <= MAX_LATENT_DIM]
    return min(per_step or kept, key=lambda trial: trial.dim).name
