"""TD3+BC: a deterministic policy climbs the first critic and stays near the data's actions."""

from __future__ import annotations

from typing import ClassVar

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import TD3BCLoss

from dsrl_torchrl.agents.actor_agent import ActorConfig
from dsrl_torchrl.agents.agent import scalars
from dsrl_torchrl.agents.td3 import TD3, TD3Options
from dsrl_torchrl.networks.critics import Critic
from dsrl_torchrl.options import option, with_defaults


class TD3BC(TD3):
    """Fujimoto & Gu 2021, by TorchRL's ``TD3BCLoss`` on macro transitions (Eq. 27).

    ``λ`` divides by the critic's own size: however large Q grows, its gradient is as large against the cloning term's
    as ``alpha`` says.
    """

    class Config(with_defaults(ActorConfig, actor_interval=2, critic_only_updates=1_000), TD3Options):  # type: ignore[misc]
        """Hyper-parameters of TD3+BC."""

        alpha: float = option(2.5, "weight of Q against the cloning term; 0: behaviour cloning", ge=0)

    panels: ClassVar = [
        *TD3.panels[:2],
        ({"actor/bc_loss": ""}, "cloning loss"),
        ({"actor/lam": ""}, "weight of Q, λ"),
    ]

    def make_loss(self, critic: Critic) -> TD3BCLoss:
        """Critics as TD3's."""
        return TD3BCLoss(self.actor, critic, alpha=self.config.alpha, **self.loss_options())

    def critic_loss(self, batch: TensorDictBase) -> tuple[Tensor, TensorDictBase]:
        """TorchRL's name for it is another."""
        return self.loss.qvalue_loss(batch)

    def actor_scalars(self, out: TensorDictBase) -> dict[str, Tensor]:
        """The cloning loss and λ, too."""
        return super().actor_scalars(out) | scalars("actor", bc_loss=out["bc_loss"], lam=out["lmbd"])
