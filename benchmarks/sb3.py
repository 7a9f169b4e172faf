"""Stable-Baselines3's SAC on a filled buffer of the same sizes."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium
import numpy as np
from tensordict import TensorDictBase

from benchmarks.setting import Setting
from dsrl_torchrl.agents import DSRLSAC

AVAILABLE = importlib.util.find_spec("stable_baselines3") is not None
HOW_TO_INSTALL = "no Stable-Baselines3 here, its column is left out: pip install -c constraints.txt -e '.[bench]'"


class SpacesOnly(gymnasium.Env):
    """The latent env's spaces; nothing steps it."""

    def __init__(self, setting: Setting) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (setting.observation,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.5, 1.5, (setting.noise,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        return np.zeros(self.observation_space.shape, np.float32), {}


class SB3SAC:
    """``SAC.train`` with networks of the same widths, activation and ensemble size, and our rates.

    Its critics have no LayerNorm and its observations no Fourier features: compare it with a :class:`Setting` without
    them. Its discount is one number, where ours is ``γ^k``.
    """

    def __init__(self, setting: Setting, config: DSRLSAC.Config, data: TensorDictBase) -> None:
        from stable_baselines3 import SAC
        from stable_baselines3.common.logger import configure
        from torch import nn

        cells = [setting.width] * setting.depth
        n = len(data)
        self.batch_size = setting.batch_size
        self.model = SAC(
            "MlpPolicy",
            SpacesOnly(setting),
            learning_rate=config.critic_lr,
            buffer_size=n,
            batch_size=setting.batch_size,
            tau=config.tau,
            gamma=config.gamma,
            ent_coef=f"auto_{config.alpha_init}",
            policy_kwargs={
                "net_arch": {"pi": cells, "qf": cells},
                "activation_fn": nn.ReLU,
                "n_critics": setting.num_critics,
            },
            device="cpu",
        )
        self.model.set_logger(configure(None, []))
        buffer: Any = self.model.replay_buffer
        buffer.observations[:, 0] = data["observation"].numpy()
        buffer.next_observations[:, 0] = data["next", "observation"].numpy()
        buffer.actions[:, 0] = data["action"].numpy() / 1.5
        buffer.rewards[:] = data["next", "reward"].numpy()
        buffer.dones[:] = data["next", "terminated"].numpy()
        buffer.full = True

    def run(self, updates: int) -> None:
        self.model.train(gradient_steps=updates, batch_size=self.batch_size)
