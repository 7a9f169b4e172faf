"""Our update, as the training loop runs it: the only place of the benchmarks that knows its interface."""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDictBase

from benchmarks.setting import Setting, random_transitions
from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.data.decoded_pairs import draw_alias_pairs, refresh_alias_pairs
from dsrl_torchrl.training.accelerated_update import AcceleratedUpdate
from dsrl_torchrl.training.latent_networks import make_actor
from dsrl_torchrl.training.learner import make_update
from dsrl_torchrl.training.network_config import NetworkConfig
from dsrl_torchrl.data.replay import MixedReplay
from dsrl_torchrl.training.rounds import make_updates
from dsrl_torchrl.training.stage2_config import Stage2Config


class LatentUpdateLoop:
    """Actor, replay and update of stage 2 without its envs (:func:`dsrl_torchrl.training.online.train_stage2`).

    Args:
        env: the latent env; nothing steps it here.
        config: hyper-parameters; ``noise_aliasing`` chooses DSRL-NA or DSRL-SAC.
        networks: sizes.
        online: macro transitions ``[n]`` that the replay begins with, with alias pairs if ``config`` asks for them.
        offline: those that ``config.offline_fraction`` of a batch is drawn from.
    """

    def __init__(
        self,
        env: LatentActionEnv,
        config: Stage2Config,
        networks: NetworkConfig,
        online: TensorDictBase,
        offline: TensorDictBase | None = None,
    ) -> None:
        self.env, self.config = env, config
        self.actor = make_actor(env, networks)
        update = make_update(env, self.actor, config, networks, noise_aliasing=config.noise_aliasing)
        self.update = AcceleratedUpdate(update, config.compile)
        self.replay = MixedReplay(len(online) + 1_000, config.batch_size, offline, config.offline_fraction)
        self.replay.online.extend(online)

    def collected(self, transitions: TensorDictBase) -> None:
        """Stores new macro transitions and refreshes old ones, as the loop does after each round of collection."""
        samples = self.config.alias_samples if self.config.noise_aliasing else 0
        add_alias_pairs = partial(
            draw_alias_pairs,
            decode=self.env.decoder.decode,
            latent_dim=self.env.noise_layout.dim,
            samples=samples,
            behaviour_fraction=self.config.behaviour_fraction,
        )
        self.replay.online.extend(add_alias_pairs(transitions))
        if samples and self.config.alias_refresh:
            refresh_alias_pairs(self.replay.online, self.config.alias_refresh, add_alias_pairs)

    def run(self, updates: int) -> None:
        """One round of updates, sampling and the loop's check of the last metrics included."""
        first = self.config.critic_only_updates  # the actor is trained from here on
        metrics = make_updates(self.update, self.replay.sample, self.config, first=first, updates=updates)
        assert all(torch.isfinite(value) for value in metrics.values())


def make_loop(setting: Setting, config: Stage2Config, transitions: int) -> LatentUpdateLoop:
    """The loop on random macro transitions, as many offline ones where the configuration mixes them in."""
    pairs = config.noise_aliasing and config.alias_samples > 0
    online = random_transitions(setting, transitions, alias_pairs=pairs)
    offline = random_transitions(setting, transitions, alias_pairs=pairs) if config.offline_fraction else None
    return LatentUpdateLoop(setting.env(), config, setting.networks(), online, offline)
