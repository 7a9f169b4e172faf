"""Our update, as the training loop runs it: the only place of the benchmarks that knows its interface."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase

from benchmarks.setting import Setting, random_transitions
from dsrl_torchrl.data.alias_pairs import draw_alias_pairs, pick_alias_pair
from dsrl_torchrl.training.latent_networks import make_actor
from dsrl_torchrl.training.learner import make_update
from dsrl_torchrl.training.replay import MixedReplay
from dsrl_torchrl.training.stage2_config import Stage2Config


class LatentUpdateLoop:
    """Replay and update of stage 2 without an env (:func:`dsrl_torchrl.training.stage2.train_stage2`).

    Args:
        setting: sizes.
        config: hyper-parameters; ``noise_aliasing`` chooses DSRL-NA or DSRL-SAC, ``offline_fraction`` mixes in as many
            offline transitions as there are online ones.
        transitions: macro transitions in the replay.
    """

    def __init__(self, setting: Setting, config: Stage2Config, transitions: int) -> None:
        self.setting, self.config = setting, config
        self.env = setting.env()
        self.update = make_update(
            self.env,
            make_actor(self.env, setting.networks()),
            config,
            setting.networks(),
            noise_aliasing=config.noise_aliasing,
        )
        offline = self._with_alias_pairs(transitions) if config.offline_fraction else None
        self.replay = MixedReplay(max(transitions, 1_000), config.batch_size, offline, config.offline_fraction)
        self.replay.online.extend(self._with_alias_pairs(transitions))

    def _with_alias_pairs(self, n: int) -> TensorDictBase:
        samples = self.setting.alias_samples if self.config.noise_aliasing else 0
        return draw_alias_pairs(
            random_transitions(self.setting, n),
            self.env.decoder.decode,
            self.setting.noise,
            samples,
            self.config.behaviour_fraction,
        )

    def collected(self, n: int) -> None:
        """Stores ``n`` new macro transitions, as the loop does after each round of collection."""
        self.replay.online.extend(self._with_alias_pairs(n))

    def run(self, updates: int) -> None:
        """One round of updates, sampling and the loop's check of the last metrics included."""
        metrics: dict[str, torch.Tensor] = {}
        for _ in range(updates):
            metrics.update(self.update(pick_alias_pair(self.replay.sample())).items())
        assert all(torch.isfinite(value) for value in metrics.values())
