"""The sizes that a benchmark of the update has, and a problem of these sizes without a simulator."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial

import torch
from tensordict import TensorDict

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLAWMLE, DSRLNA, DSRLSAC
from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.agents.dsrl_aw_mle import PAIR_CHUNK, PAIR_NOISE
from dsrl_torchrl.envs.episodic import EpisodicEnv
from dsrl_torchrl.networks.config import NetworkConfig
from dsrl_torchrl.networks.encoders import StateEncoder
from dsrl_torchrl.policies import FlowPolicy

GAMMA = 0.98
MAGNITUDE = 1.5
AGENTS: dict[str, type[Agent]] = {"dsrl_sac": DSRLSAC, "dsrl_na": DSRLNA, "dsrl_aw_mle": DSRLAWMLE}


@dataclass(frozen=True)
class Setting:
    """Sizes of problem, networks and base policy; those of ``task=push_cube`` and the shipped networks by default.

    Attributes:
        observation, action, horizon: of the task; the noise has ``action * horizon`` dimensions.
        width, depth: of latent policy and critics.
        num_critics: N.
        layer_norm, fourier_bands: of the shipped networks; without them they are those of Stable-Baselines3.
        batch_size: of an update.
        base_width, sampler_steps: of the flow policy, three hidden layers.
    """

    observation: int = 35
    action: int = 4
    horizon: int = 8
    width: int = 256
    depth: int = 3
    num_critics: int = 2
    layer_norm: bool = True
    fourier_bands: tuple[float, ...] = (0.5, 1.0)
    batch_size: int = 256
    base_width: int = 256
    base_depth: int = 3
    sampler_steps: int = 5

    @property
    def noise(self) -> int:
        """Size of the latent action."""
        return self.action * self.horizon

    @property
    def features(self) -> int:
        """Size of the observation as the networks see it."""
        return self.observation * (1 + 2 * len(self.fourier_bands))

    def networks(self) -> NetworkConfig:
        """The library's configuration of these networks."""
        return NetworkConfig(
            num_critics=self.num_critics,
            num_cells=(self.width,) * self.depth,
            layer_norm=self.layer_norm,
            encoders={"state": partial(StateEncoder, fourier_bands=self.fourier_bands)},
        )

    def agent(self, algorithm: str, env: LatentActionEnv | None = None, **options: object) -> Agent:
        """The agent of ``conf/algorithm/<algorithm>.yaml`` with these sizes, e.g. ``dsrl_na``, and other options."""
        cls = AGENTS[algorithm]
        config = cls.Config(batch_size=self.batch_size, gamma=GAMMA, **options)
        return cls(self.env() if env is None else env, config, self.networks())

    def base_policy(self) -> FlowPolicy:
        """A flow policy of these sizes; what it decodes costs the same trained or not."""
        network = {"kind": "mlp", "width": self.base_width, "depth": self.base_depth}
        return FlowPolicy(
            self.observation, self.action, self.horizon, sampler_steps=self.sampler_steps, network=network
        ).freeze()

    def env(self, num_envs: int = 1) -> LatentActionEnv:
        """The latent env over :class:`RandomWalkEnv`."""
        return LatentActionEnv(
            RandomWalkEnv(self, num_envs), self.base_policy(), gamma=GAMMA, action_magnitude=MAGNITUDE
        )


class RandomWalkEnv(EpisodicEnv):
    """Observations of the right size that cost nothing to make; an episode ends after 100 steps."""

    def __init__(self, setting: Setting, num_envs: int = 1) -> None:
        bound = torch.ones(setting.action)
        super().__init__(num_envs, setting.observation, -bound, bound, seed=0)
        self._drift = torch.randn(setting.action, setting.observation)
        self._position = torch.zeros(num_envs, setting.observation)
        self._elapsed = torch.zeros(num_envs, dtype=torch.int64)
        self._never = torch.zeros(num_envs, dtype=torch.bool)

    def _start(self, seeds, env_idx, asked):
        chosen = slice(None) if env_idx is None else env_idx
        self._position = self._position.clone()
        self._position[chosen], self._elapsed[chosen] = 0.0, 0
        return self._position, self._never

    def _advance(self, action):
        self._position = self._position + 0.1 * action @ self._drift
        self._elapsed = self._elapsed + 1
        return self._position, self._never, action.sum(-1), self._never, self._elapsed >= 100


def two_sizes(text: str) -> str:
    """An argument of the command line such as ``2x128``, as it is."""
    first, by, second = text.partition("x")
    if not (by and first.isdecimal() and second.isdecimal() and int(first) and int(second)):
        raise argparse.ArgumentTypeError(f"should be two whole numbers, such as 2x128, got {text!r}")
    return text


def random_transitions(setting: Setting, n: int, pairs: int = 0) -> TensorDict:
    """Macro transitions ``[n]`` that no env made: the update's time does not depend on their values.

    Each gets ``pairs`` decoded pairs (:mod:`dsrl_torchrl.agents.dsrl_aw_mle`), random, too.
    """
    terminated = torch.rand(n, 1) < 0.02
    truncated = torch.rand(n, 1) < 0.05
    transitions = TensorDict(
        {
            "observation": torch.randn(n, setting.observation),
            "action": MAGNITUDE * torch.tanh(torch.randn(n, setting.noise)),
            "next": {
                "observation": torch.randn(n, setting.observation),
                "reward": -torch.rand(n, 1),
                "chunk_steps": torch.randint(1, setting.horizon + 1, (n, 1)),
                "action_chunk": torch.rand(n, setting.horizon, setting.action) * 2 - 1,
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
                "success": terminated,
            },
        },
        [n],
    )
    if pairs:
        transitions[PAIR_NOISE] = torch.randn(n, pairs, setting.noise)
        transitions[PAIR_CHUNK] = torch.rand(n, pairs, setting.horizon, setting.action) * 2 - 1
    return transitions
