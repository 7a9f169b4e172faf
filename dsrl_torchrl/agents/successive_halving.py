"""The best of a few candidates by the episodes that each is given, the worse half dropped again and again."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from dsrl_torchrl.latent_env.macro_step import STEPS_KEY


class SuccessiveHalving(nn.Module):
    """Which candidate each env plays for a whole episode, and what that was worth (Karnin et al. 2013).

    After ``first_episodes`` of each candidate the worse half is dropped by their mean discounted return, those that
    stay play until they have twice as many, and so on: ``count * first_episodes * (1 + log2(count)) / 2`` episodes,
    then the winner plays on.

    Args:
        count: number of candidates.
        first_episodes: of each before the first halving.
        gamma: discount per env step.
    """

    returns: Tensor
    episodes: Tensor
    left: Tensor
    halvings: Tensor

    def __init__(self, count: int, first_episodes: int, gamma: float) -> None:
        super().__init__()
        self.first_episodes, self.gamma = first_episodes, gamma
        for name, dtype in (("returns", torch.float64), ("episodes", torch.int64)):  # sums over finished episodes
            self.register_buffer(name, torch.zeros(count, dtype=dtype))
        self.register_buffer("left", torch.ones(count, dtype=torch.bool))
        self.register_buffer("halvings", torch.zeros((), dtype=torch.int64))
        self.restart()

    def restart(self) -> None:
        """Forgets everything."""
        for sums in (self.returns, self.episodes, self.halvings):
            sums.zero_()
        self.left.fill_(True)
        # Of every env, the episode under way: its candidate (-1: none), whether that has played it from its start,
        # Σ γ^t R and t so far.
        self.playing: list[int] = []
        self._whole: list[bool] = []
        self._return: list[float] = []
        self._steps: list[int] = []

    @property
    def means(self) -> Tensor:
        """Mean returns ``[count]``, ``-inf`` of who was dropped or has not played."""
        played = self.left & (self.episodes > 0)
        return torch.where(played, self.returns / self.episodes.clamp(min=1), -torch.inf)

    @property
    def leader(self) -> int:
        """The candidate with the best mean return of those that are left."""
        return int(self.means.argmax())  # the first if none has played

    def begin(self, observed: TensorDictBase) -> list[int]:
        """Gives each env that starts an episode the candidate with the fewest; the candidates of all envs.

        Args:
            observed: what the policy gets; the env steps of the last macro step are 0 where an episode starts.
        """
        started = (observed.get(STEPS_KEY) == 0).flatten().tolist()
        if len(self.playing) != len(started):
            self.playing, self._whole = [-1] * len(started), [False] * len(started)
            self._return, self._steps = [0.0] * len(started), [0] * len(started)
        for i, new in enumerate(started):
            if new:
                self.playing[i], self._whole[i], self._return[i], self._steps[i] = -1, True, 0.0, 0
        left, given = self.left.tolist(), self.episodes.tolist()
        for candidate, whole in zip(self.playing, self._whole, strict=True):
            if candidate >= 0 and whole:
                given[candidate] += 1
        for i, candidate in enumerate(self.playing):
            if candidate < 0:
                self.playing[i] = min((c for c in range(len(given)) if left[c]), key=given.__getitem__)
                given[self.playing[i]] += self._whole[i]
        return self.playing

    def record(self, transitions: TensorDictBase) -> None:
        """Counts a macro step of every env, ``[number of envs]``, in the order in which the policy saw them."""
        if len(self.playing) != len(transitions):  # another policy's
            return
        following = transitions["next"].select("reward", STEPS_KEY, "done").cpu()
        reward, k, done = (following[key].squeeze(-1).tolist() for key in ("reward", STEPS_KEY, "done"))
        for i, candidate in enumerate(self.playing):
            if candidate < 0:
                continue
            self._return[i] += self.gamma ** self._steps[i] * reward[i]
            self._steps[i] += k[i]
            if done[i]:
                if self._whole[i]:
                    self.returns[candidate] += self._return[i]
                    self.episodes[candidate] += 1
                self.playing[i], self._whole[i] = -1, False
        self._halve()

    def _halve(self) -> None:
        """Drops the worse half once each that is left has had its episodes."""
        count = int(self.left.sum())
        while count > 1 and bool((self.episodes[self.left] >= self.first_episodes * 2 ** int(self.halvings)).all()):
            count = (count + 1) // 2
            best = self.means.argsort(descending=True, stable=True)[:count]
            self.left.fill_(False)[best] = True
            self.halvings += 1
