"""Our update, as the training loop runs it: the only place of the benchmarks that knows its interface."""

from __future__ import annotations

from tensordict import TensorDictBase

from benchmarks.setting import Setting, random_transitions
from dsrl_torchrl.agents import DSRLAWMLE
from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.data.replay import Replay
from dsrl_torchrl.training.online import OnlineConfig
from dsrl_torchrl.training.update_rounds import AcceleratedUpdate, check_metrics, make_updates


class LatentUpdateLoop:
    """Agent, replay and updates of :func:`dsrl_torchrl.training.online.train_online` without its envs.

    Args:
        agent: trained in place.
        online: macro transitions ``[n]`` that the replay begins with, with what ``agent.store`` adds.
        offline: those that ``offline_fraction`` of every batch is drawn from, likewise.
        offline_fraction: 0 for online ones alone.
    """

    def __init__(
        self,
        agent: Agent,
        online: TensorDictBase,
        offline: TensorDictBase | None = None,
        offline_fraction: float = 0.0,
    ) -> None:
        self.agent = agent
        self.update = AcceleratedUpdate(agent)
        self.replay = Replay(len(online) + 1_000, agent.config.batch_size, offline, offline_fraction, agent.device)
        self.replay.extend(online)

    def collected(self, transitions: TensorDictBase) -> None:
        """Stores new macro transitions, as the loop does after each round of collection."""
        self.replay.extend(self.agent.store(transitions, online=True))

    def run(self, updates: int) -> None:
        """One round of updates, sampling and the loop's check of the last metrics included."""
        first = self.agent.config.critic_only_updates  # the actor is trained from here on
        check_metrics(make_updates(self.update, self.replay.sample, first=first, count=updates), updates)


def make_loop(
    setting: Setting, algorithm: str, transitions: int, *, offline: bool | None = None, **options: object
) -> LatentUpdateLoop:
    """The loop on random macro transitions.

    Args:
        setting: sizes.
        algorithm: name of its YAML, e.g. ``dsrl_na``.
        transitions: in the replay, and as many offline ones.
        offline: mix them into every batch as shipped; ``None``: as the algorithm's YAML does.
        options: of the agent's ``Config`` that differ.
    """
    agent = setting.agent(algorithm, **options)
    pairs = agent.config.decoded_pairs if isinstance(agent, DSRLAWMLE) else 0
    online, stored = (random_transitions(setting, transitions, pairs) for _ in range(2))
    mixed = not agent.reads_noise if offline is None else offline
    return LatentUpdateLoop(agent, online, stored, OnlineConfig().offline_fraction if mixed else 0.0)
