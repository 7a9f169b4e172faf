"""Golden noise: no learning; one constant noise for every state, the prior's best by the episodes that it was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from dsrl_torchrl.agents.agent import Agent, AgentConfig, scalars
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY
from dsrl_torchrl.options import option


class GoldenNoise(Agent):
    """A constant noise found by successive halving over candidates of the prior (Eq. 31).

    Patil et al. 2026, arXiv 2603.15757 ("golden tickets"), search at random: every candidate ``w_i ~ N(0, I)`` plays
    the same starts, and the best mean return wins. Here the candidates share one budget of env steps, training starts
    are drawn by the env, and successive halving (Karnin et al. 2013) spends it: after ``first_episodes`` of each the
    worse half is dropped, those that stay play until they have twice as many, and so on. The search takes
    ``candidates * first_episodes * (1 + log2(candidates)) / 2`` episodes; then the winner plays on. A run that ends
    before keeps the leader.
    """

    class Config(AgentConfig):
        """Hyper-parameters of the search."""

        candidates: int = option(32, "noises of the prior to choose from", ge=1)
        first_episodes: int = option(3, "of each candidate before the first halving, twice as many by the next", ge=1)

    reads_noise: ClassVar = True
    learns_offline: ClassVar = False
    acts_alone: ClassVar = False  # by what its episodes were worth
    panels: ClassVar = [
        ({"search/leader_return": ""}, "leader's mean return"),
        ({"search/candidates": ""}, "candidates that are left"),
    ]

    candidates: Tensor
    returns: Tensor
    episodes: Tensor
    left: Tensor
    halvings: Tensor

    def __init__(self, env: Any, config: Any = None, networks: Any = None, data: TensorDictBase | None = None) -> None:
        super().__init__(env, config, networks, data)
        count = self.config.candidates
        noise = torch.randn(count, self.decoder.latent_dim).to(self.device)
        self.register_buffer("candidates", noise)
        for name, dtype in (("returns", torch.float64), ("episodes", torch.int64)):  # sums over finished episodes
            self.register_buffer(name, torch.zeros(count, dtype=dtype))
        self.register_buffer("left", torch.ones(count, dtype=torch.bool))
        self.register_buffer("halvings", torch.zeros((), dtype=torch.int64))
        # Of every env, the episode under way: its candidate (-1: none), Σ γ^t R and t so far.
        self._playing: list[int] = []
        self._return: list[float] = []
        self._steps: list[int] = []
        self.policy, self.kept_policy = SearchPolicy(self), LeaderPolicy(self)

    @property
    def leader(self) -> int:
        """The candidate with the best mean return of those that are left."""
        played = self.left & (self.episodes > 0)
        mean = self.returns / self.episodes.clamp(min=1)
        return int(torch.where(played, mean, -torch.inf).argmax())  # the first if none has played

    def begin(self, started: list[bool]) -> list[int]:
        """Gives each env that starts an episode the candidate with the fewest; the candidates of all envs."""
        if len(self._playing) != len(started):
            self._playing = [-1] * len(started)
            self._return, self._steps = [0.0] * len(started), [0] * len(started)
        for i, new in enumerate(started):
            if new:
                self._playing[i], self._return[i], self._steps[i] = -1, 0.0, 0
        left, given = self.left.tolist(), self.episodes.tolist()
        for candidate in self._playing:
            if candidate >= 0:
                given[candidate] += 1
        for i, candidate in enumerate(self._playing):
            if candidate < 0:
                self._playing[i] = min((c for c in range(len(given)) if left[c]), key=given.__getitem__)
                given[self._playing[i]] += 1
        return self._playing

    def store(self, transitions: TensorDictBase, *, online: bool) -> TensorDictBase:
        """Counts a macro step of every env, ``[number of envs]``, in the order in which the policy saw them."""
        if not online or len(self._playing) != len(transitions):  # the prior's warm-up
            return transitions
        following = transitions["next"].select("reward", STEPS_KEY, "done").cpu()
        reward, k, done = (following[key].squeeze(-1).tolist() for key in ("reward", STEPS_KEY, "done"))
        for i, candidate in enumerate(self._playing):
            if candidate < 0:
                continue
            self._return[i] += self.config.gamma ** self._steps[i] * reward[i]
            self._steps[i] += k[i]
            if done[i]:
                self.returns[candidate] += self._return[i]
                self.episodes[candidate] += 1
                self._playing[i] = -1
        self._halve()
        return transitions

    def _halve(self) -> None:
        """Drops the worse half once each that is left has had its episodes."""
        count = int(self.left.sum())
        while count > 1 and bool(
            (self.episodes[self.left] >= self.config.first_episodes * 2 ** int(self.halvings)).all()
        ):
            mean = torch.where(self.left, self.returns / self.episodes.clamp(min=1), -torch.inf)
            count = (count + 1) // 2
            self.left.fill_(False)[mean.argsort(descending=True, stable=True)[:count]] = True
            self.halvings += 1

    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """Nothing is learned from transitions: how the search stands."""
        mean = self.returns / self.episodes.clamp(min=1)
        played = self.left & (self.episodes > 0)
        leader = torch.where(played, mean, -torch.inf).max()
        return TensorDict(
            scalars(
                "search",
                candidates=self.left.sum().float(),
                episodes=self.episodes.sum().float(),
                leader_return=torch.where(played.any(), leader, 0.0).float(),
            )
        )

    def noise_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        raise UserError(
            "GoldenNoise has no critic: it knows what its candidates' episodes were worth, and no state's noise"
        )

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        names = ("candidates", "returns", "episodes", "left", "halvings")
        return {"actor": {name: getattr(self, name) for name in names}}


class SearchPolicy(TensorDictModuleBase):
    """The search's: every env plays its candidate's noise for a whole episode, which begins where k is 0."""

    in_keys: ClassVar[list] = [STEPS_KEY]
    out_keys: ClassVar = ["action"]

    def __init__(self, agent: GoldenNoise) -> None:
        super().__init__()
        self.__dict__["agent"] = agent  # which holds this policy

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        started = (tensordict.get(STEPS_KEY) == 0).flatten().tolist()
        noise = self.agent.candidates[self.agent.begin(started)]
        return tensordict.set("action", noise.reshape(*tensordict.batch_size, -1))


class LeaderPolicy(TensorDictModuleBase):
    """The leader's noise, whatever the state."""

    in_keys: ClassVar[list] = []
    out_keys: ClassVar = ["action"]

    def __init__(self, agent: GoldenNoise) -> None:
        super().__init__()
        self.__dict__["agent"] = agent

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        noise = self.agent.candidates[self.agent.leader]
        return tensordict.set("action", noise.expand(*tensordict.batch_size, -1).clone())
