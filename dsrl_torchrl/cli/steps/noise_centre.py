"""``latent.centre_env_steps``: a constant noise that works, around which this base policy is steered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from dsrl_torchrl import seeds
from dsrl_torchrl.agents.golden_noise import GoldenNoise
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.collect.macro_steps import macro_steps_of
from dsrl_torchrl.data.macro_transitions import check_finite, to_macro_transitions
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY

FILE = "centre.safetensors"
#: 40 episodes, then the winner plays on: what 10,000 env steps of LiftPegUpright hold.
CANDIDATES, FIRST_EPISODES = 16, 1
#: Returns that differ by less, relatively, are the same but for rounding.
SAME = 1e-6


@dataclass(frozen=True)
class CentreChoice:
    """The noise that won, and by what.

    Attributes:
        centre: ``[noise_horizon, noise_dim]``.
        mean_return: of the winner's episodes, discounted.
        mean_return_of_all: the same of every candidate's.
        winner_episodes: finished by the winner.
        episodes: finished by all.
        env_steps: taken by all.
    """

    centre: Tensor
    mean_return: float
    mean_return_of_all: float
    winner_episodes: int
    episodes: int
    env_steps: int

    def line(self) -> str:
        """For the user."""
        return (
            f"noise centre: of {CANDIDATES} constant noises the best has a mean return of {self.mean_return:.1f} in "
            f"{self.winner_episodes} episodes, all have {self.mean_return_of_all:.1f} in {self.episodes}; "
            f"{self.env_steps} env steps"
        )


def search_centre(env: LatentActionEnv, config: RunConfig) -> CentreChoice:
    """The leader of a golden-noise search (Eq. 31) of ``latent.centre_env_steps`` env steps.

    Args:
        env: of the base policy itself.
        config: of the run.

    Raises:
        UserError: so few env steps that no episode ends, or none that was worth more than another.
        NonFiniteError: NaN or infinity in an episode.
    """
    stream, budget, env_steps = seeds.SEARCH_STREAM + config.seed, config.latent.centre_env_steps, 0
    options = GoldenNoise.Config(gamma=config.algorithm.gamma, candidates=CANDIDATES, first_episodes=FIRST_EPISODES)
    agent = GoldenNoise(env, options, config.networks)
    # Whatever networks it made before: it learns nothing.
    torch.manual_seed(stream)
    agent.candidates.copy_(torch.randn(agent.candidates.shape))
    bar = tqdm(total=budget, unit="step", desc="noise centre", mininterval=1.0, disable=not config.progress)
    with bar, macro_steps_of(env, agent.policy, stream, lambda: None) as batches:
        for batch in batches:
            transitions = to_macro_transitions(batch, agent.in_keys)
            check_finite(transitions, env_steps)
            agent.store(transitions, online=True)
            taken = int(transitions["next", STEPS_KEY].sum())
            bar.update(min(taken, max(0, budget - env_steps)))
            env_steps += taken
            if env_steps >= budget:
                break
    episodes, leader = int(agent.episodes.sum()), agent.leader
    if not episodes:
        raise UserError(
            f"latent.centre_env_steps={budget} ended before any episode did: make it some {3 * CANDIDATES} episodes"
        )
    means = (agent.returns / agent.episodes)[agent.episodes > 0]
    if means.max() - means.min() <= SAME * means.abs().max():
        raise UserError(
            f"latent.centre_env_steps={budget} told no noise from another: each has a mean return in its "
            f"episodes, {episodes} in all, of {float(means[0]):.1f}; give it more, or leave it out"
        )
    return CentreChoice(
        centre=env.decoder.layout.to_chunk_noise(agent.candidates[leader]).cpu().clone(),
        mean_return=float(agent.returns[leader] / agent.episodes[leader]),
        mean_return_of_all=float(agent.returns.sum() / episodes),
        winner_episodes=int(agent.episodes[leader]),
        episodes=episodes,
        env_steps=env_steps,
    )
