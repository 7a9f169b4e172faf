"""``latent.centre_env_steps``: a constant noise that works, around which this base policy is steered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from tqdm import tqdm

from dsrl_torchrl import seeds
from dsrl_torchrl.agents.golden_noise import GoldenNoise
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.collect.macro_steps import macro_steps_of
from dsrl_torchrl.data.macro_transitions import check_finite, to_macro_transitions
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY
from dsrl_torchrl.policies.centred import SHARE, coordinates, place

FILE, ROLLOUTS_FILE = "centre.safetensors", "rollouts.safetensors"
#: 40 episodes, or what there is but for the trial: docs/what-was-tried.md, "Around a noise that works", by resampling.
CANDIDATES, FIRST_EPISODES = 16, 1
#: Of the env steps, at least for the trial.
TRIAL = 1 / 3
BASE, AROUND = 0, 1


@dataclass(frozen=True)
class CentreChoice:
    """The noise that won the search, and whether it won the trial.

    Attributes:
        centre: ``[noise_horizon, noise_dim]``.
        kept: whether the base policy around it had the better returns.
        mean_returns: of the base policy as it is and around the centre, discounted, of the trial's episodes.
        candidates: of the search that finished an episode.
        search_episodes, trial_episodes: that counted.
        env_steps: taken by both.
    """

    centre: Tensor
    kept: bool
    mean_returns: tuple[float, float]
    candidates: int
    search_episodes: int
    trial_episodes: int
    env_steps: int

    def line(self) -> str:
        """For the user."""
        return (
            f"noise centre: the best of {self.candidates} constant noises, by {self.search_episodes} episodes; around "
            f"it a mean return of {self.mean_returns[AROUND]:.1f}, of the base policy {self.mean_returns[BASE]:.1f}, "
            f"by {self.trial_episodes}: {'steered around it' if self.kept else 'steered as it is'}; "
            f"{self.env_steps} env steps"
        )


def search_centre(
    env: LatentActionEnv, config: RunConfig, keys: Sequence[NestedKey]
) -> tuple[CentreChoice, TensorDictBase, EpisodeTracker]:
    """A golden-noise search (Eq. 31), then a trial: the base policy around the winner against the base policy.

    Both in ``latent.centre_env_steps`` env steps, and what the last episodes of the trial take to end. Zero noise is
    one of the candidates.

    Args:
        env: of the base policy itself.
        config: of the run.
        keys: the observations to keep.

    Returns:
        The choice, all macro transitions ``[n]`` with the noise of the policy that is steered now, and their episodes.

    Raises:
        NonFiniteError: NaN or infinity in an episode.
    """
    budget, gamma, seed = config.latent.centre_env_steps, config.algorithm.gamma, config.seed
    options = GoldenNoise.Config(gamma=gamma, candidates=CANDIDATES, first_episodes=FIRST_EPISODES)
    search, episodes = GoldenNoise(env, options, config.networks), EpisodeTracker(window=None)
    torch.manual_seed(seeds.SEARCH_STREAM + seed)  # whatever networks were made before: it learns nothing
    search.candidates.copy_(torch.randn(search.candidates.shape))
    search.candidates[0] = 0.0

    def found(transitions: TensorDictBase, taken: int) -> bool:
        search.store(transitions, online=True)
        enough = taken >= (1 - TRIAL) * budget and bool(search.episodes.any())
        return enough or int(search.left.sum()) == 1

    def tried(transitions: TensorDictBase, taken: int) -> bool:
        trial.store(transitions)
        trial.over = taken >= budget and trial.begun > AROUND
        return trial.over and not trial.under_way

    with tqdm(total=budget, unit="step", desc="noise centre", mininterval=1.0, disable=not config.progress) as bar:
        play = _Player(env, keys, episodes, bar)
        play(search.policy, seeds.SEARCH_STREAM + seed, found)
        leader = search.candidates[search.leader].clone()
        trial = Trial(leader, gamma)
        play(trial, seeds.TRIAL_STREAM + seed, tried)
    means = fmean(trial.returns[BASE]), fmean(trial.returns[AROUND])
    kept = means[AROUND] > means[BASE]
    transitions: TensorDictBase = torch.cat(play.transitions)
    if kept:
        transitions.set("action", coordinates(transitions["action"], leader.cpu(), SHARE))
    choice = CentreChoice(
        centre=env.decoder.layout.to_chunk_noise(leader).cpu(),
        kept=kept,
        mean_returns=means,
        candidates=int((search.episodes > 0).sum()),
        search_episodes=int(search.episodes.sum()),
        trial_episodes=sum(map(len, trial.returns)),
        env_steps=play.taken,
    )
    return choice, transitions, episodes


class Trial(TensorDictModuleBase):
    """A policy: the base policy's prior and the prior around a noise, in every other episode.

    An episode counts by when it began: those that begin before the trial is over are played to their end. Failures are
    the longer ones, and to count what ends in time would leave them out.

    Args:
        centre: in the noise layout, ``[latent_dim]``.
        gamma: discount per env step.

    Attributes:
        returns: of the episodes that counted, of the base policy's and of those around the noise.
        begun: episodes that count.
        over: no episode that begins now counts.
    """

    in_keys: ClassVar[list] = [STEPS_KEY]
    out_keys: ClassVar = ["action"]

    def __init__(self, centre: Tensor, gamma: float) -> None:
        super().__init__()
        self.centre, self.gamma = centre, gamma
        self.returns: tuple[list[float], list[float]] = ([], [])
        self.begun, self.over = 0, False
        # Of every env: whose episode is under way (-1: one that does not count), Σ γ^t R and t so far.
        self._playing: list[int] = []
        self._return: list[float] = []
        self._steps: list[int] = []

    @property
    def under_way(self) -> bool:
        """Whether an episode that counts has not ended."""
        return any(arm >= 0 for arm in self._playing)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Writes a noise for every env; an episode begins where k is 0."""
        started = (tensordict.get(STEPS_KEY) == 0).flatten().tolist()
        if not self._playing:
            self._playing, self._return, self._steps = [-1] * len(started), [0.0] * len(started), [0] * len(started)
        for i, new in enumerate(started):
            if new and self._playing[i] < 0:  # a collector asks twice at first
                self._playing[i], self._return[i], self._steps[i] = -1 if self.over else self.begun % 2, 0.0, 0
                self.begun += not self.over
        around = torch.tensor(self._playing, device=self.centre.device).unsqueeze(-1) == AROUND
        prior = torch.randn(len(around), len(self.centre)).to(self.centre)
        noise = torch.where(around, place(prior, self.centre, SHARE), prior)
        return tensordict.set("action", noise.reshape(*tensordict.batch_size, -1))

    def store(self, transitions: TensorDictBase) -> None:
        """Counts a macro step of every env, ``[number of envs]``, in the order in which they were acted in."""
        following = transitions["next"]
        reward, k, done = (following[key].squeeze(-1).tolist() for key in ("reward", STEPS_KEY, "done"))
        for i, arm in enumerate(self._playing):
            self._return[i] += self.gamma ** self._steps[i] * reward[i]
            self._steps[i] += k[i]
            if done[i] and arm >= 0:
                self.returns[arm].append(self._return[i])
                self._playing[i] = -1


class _Player:
    """Plays one policy after the other and keeps all ``transitions``, batches ``[number of envs]`` on the CPU."""

    def __init__(self, env: LatentActionEnv, keys: Sequence[NestedKey], episodes: EpisodeTracker, bar: tqdm) -> None:
        self.env, self.keys, self.episodes, self.bar = env, keys, episodes, bar
        self.transitions: list[TensorDictBase] = []
        self.taken = 0

    def __call__(self, policy: TensorDictModuleBase, stream: int, done: Callable[[TensorDictBase, int], bool]) -> None:
        """From resets of ``stream`` until ``done(transitions, env steps so far)``."""
        self.episodes.restart()
        with macro_steps_of(self.env, policy, stream, lambda: None) as batches:
            for batch in batches:
                # The collector writes the next batch over this one.
                transitions = to_macro_transitions(batch, self.keys).clone().cpu()
                check_finite(transitions, self.taken)
                self.transitions.append(transitions)
                self.episodes.update(batch)
                self.taken += int(transitions["next", STEPS_KEY].sum())
                self.bar.update(min(self.taken, self.bar.total) - self.bar.n)
                if done(transitions, self.taken):
                    break
