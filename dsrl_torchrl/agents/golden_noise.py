"""Golden noise: no learning; one constant noise for every state, the prior's best by the episodes that it was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from dsrl_torchrl.agents.agent import Agent, AgentConfig, scalars
from dsrl_torchrl.agents.successive_halving import SuccessiveHalving
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY
from dsrl_torchrl.options import option


class GoldenNoise(Agent):
    """A constant noise found by successive halving over candidates of the prior (Eq. 31).

    Patil et al. 2026, arXiv 2603.15757 ("golden tickets"), search at random: every candidate ``w_i ~ N(0, I)`` plays
    the same starts, and the best mean return wins. Here the candidates share one budget of env steps, training starts
    are drawn by the env, and :class:`SuccessiveHalving` spends it. A run that ends before keeps the leader.
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

    def __init__(self, env: Any, config: Any = None, networks: Any = None, data: TensorDictBase | None = None) -> None:
        super().__init__(env, config, networks, data)
        count = self.config.candidates
        noise = torch.randn(count, self.decoder.latent_dim).to(self.device)
        self.register_buffer("candidates", noise)
        self.search = SuccessiveHalving(count, self.config.first_episodes, self.config.gamma)
        self.policy, self.kept_policy = SearchPolicy(self), LeaderPolicy(self)

    @property
    def leader(self) -> Tensor:
        """The noise of the best candidate so far, ``[latent_dim]``."""
        return self.candidates[self.search.leader]

    def store(self, transitions: TensorDictBase, *, online: bool) -> TensorDictBase:
        """Counts a macro step of every env."""
        if online:
            self.search.record(transitions)
        return transitions

    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """Nothing is learned from transitions: how the search stands."""
        search, leader = self.search, self.search.means.max()
        return TensorDict(
            scalars(
                "search",
                candidates=search.left.sum().float(),
                episodes=search.episodes.sum().float(),
                leader_return=torch.where(leader.isfinite(), leader, 0.0).float(),
            )
        )

    def noise_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        raise UserError(
            "GoldenNoise has no critic: it knows what its candidates' episodes were worth, and no state's noise"
        )

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {"actor": {"candidates": self.candidates, **self.search.state_dict()}}


class SearchPolicy(TensorDictModuleBase):
    """The search's: every env plays its candidate's noise for a whole episode, which begins where k is 0."""

    in_keys: ClassVar[list] = [STEPS_KEY]
    out_keys: ClassVar = ["action"]

    def __init__(self, agent: GoldenNoise) -> None:
        super().__init__()
        self.__dict__["agent"] = agent  # which holds this policy

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        noise = self.agent.candidates[self.agent.search.begin(tensordict)]
        return tensordict.set("action", noise.reshape(*tensordict.batch_size, -1))


class LeaderPolicy(TensorDictModuleBase):
    """The leader's noise, whatever the state."""

    in_keys: ClassVar[list] = []
    out_keys: ClassVar = ["action"]

    def __init__(self, agent: GoldenNoise) -> None:
        super().__init__()
        self.__dict__["agent"] = agent

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("action", self.agent.leader.expand(*tensordict.batch_size, -1).clone())
