"""Residual SAC: soft actor-critic on a bounded correction of the base policy's chunks, explored little by little."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from dsrl_torchrl.agents.actor_agent import ActorConfig
from dsrl_torchrl.agents.dsrl_sac import DSRLSAC
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY
from dsrl_torchrl.objectives.sac import SACOptions
from dsrl_torchrl.options import option, with_defaults


class ResidualSAC(DSRLSAC):
    """Policy Decorator (Yuan et al. 2024, arXiv 2412.13630), chunk by chunk: SAC's equations on the residual (Eq. 30).

    The progressive exploration schedule: at env step n each env follows the residual with probability min(n / H, 1),
    and the base policy alone otherwise. Critics and actor read the base policy's chunk beside the observation; the
    published critic reads the sum of both by default.
    """

    class Config(with_defaults(ActorConfig, critic_only_updates=300), with_defaults(SACOptions, alpha_init=0.05)):  # type: ignore[misc]
        """Hyper-parameters of residual SAC."""

        progressive_env_steps: int = option(10_000, "until the residual acts always, H; 0: from the start", ge=0)

    env_steps: Tensor

    def __init__(self, env, config=None, networks=None, data=None) -> None:
        super().__init__(env, config, networks, data)
        self.register_buffer("env_steps", torch.zeros((), device=self.device))
        self.policy = ProgressivePolicy(self.policy, self)

    def store(self, transitions: TensorDictBase, *, online: bool) -> TensorDictBase:
        """Counts the env steps, warm-up included."""
        if online:
            self.env_steps += transitions["next", STEPS_KEY].sum().to(self.device)
        return transitions

    def residual_share(self) -> Tensor:
        """min(n / H, 1)."""
        return (self.env_steps / max(self.config.progressive_env_steps, 1e-9)).clamp(max=1.0)


class ProgressivePolicy(TensorDictModuleBase):
    """The residual in some envs, zero in the others.

    Args:
        policy: gives the residual.
        agent: knows how often.
    """

    def __init__(self, policy: TensorDictModuleBase, agent: ResidualSAC) -> None:
        super().__init__()
        self.policy, self.in_keys, self.out_keys = policy, policy.in_keys, ["action"]
        self.__dict__["agent"] = agent  # which holds this policy

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Draws for each env of ``[*B]``."""
        tensordict = self.policy(tensordict)
        action, config = tensordict.get("action"), self.agent.config
        if not config.progressive_env_steps:
            return tensordict
        follows = torch.rand(*action.shape[:-1], 1, device=action.device) < self.agent.residual_share()
        return tensordict.set("action", torch.where(follows, action, torch.zeros_like(action)))
