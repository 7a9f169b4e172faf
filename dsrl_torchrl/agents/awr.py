"""AWR: a Gaussian policy imitates the data's actions, each weighted by its advantage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dsrl_torchrl.agents.actor_agent import ActorAgent, ActorConfig
from dsrl_torchrl.agents.agent import scalars
from dsrl_torchrl.agents.curve_checks import grew
from dsrl_torchrl.agents.dsrl_sac import DSRLSAC
from dsrl_torchrl.networks.critics import reduce_ensemble
from dsrl_torchrl.objectives.sac import SACOptions
from dsrl_torchrl.options import option, with_defaults


def awr_weights(advantage: Tensor, temperature: float, max_weight: float) -> Tensor:
    """``w = min(exp(z / T), w_max)``, z the advantages of a batch ``[n]`` in standard deviations from their mean.

    Their mean over a normal z is ``exp(1 / 2 T²)``, 1.65 for T = 1: it says nothing of how uniform they are.
    """
    z = (advantage - advantage.mean()) / advantage.std(correction=0).clamp(min=1e-6)
    return (z / temperature).exp().clamp(max=max_weight)


def effective_share(weights: Tensor) -> Tensor:
    """``(Σ w)² / (n Σ w²)`` of ``[n]`` weights: 1 if all are equal, 1 / n if one takes all."""
    return weights.sum().square() / (len(weights) * weights.square().sum())


class AWR(DSRLSAC):
    """Advantage-weighted regression (Peng et al. 2019; Eq. 28) on DSRL-SAC's critics, as in AWAC (Nair et al. 2020)."""

    class Config(with_defaults(ActorConfig, critic_only_updates=1_000)):  # type: ignore[misc]
        """Hyper-parameters of AWR."""

        backup: Literal["min", "mean"] = option("min", "over the ensemble, in targets and advantages")
        weight_temperature: float = option(1.0, "of the weights, in standard deviations of a batch's advantages", gt=0)
        max_weight: float = option(20.0, "of a transition", gt=0)

    mirrored_as: ClassVar = {**ActorAgent.mirrored_as}
    panels: ClassVar = [
        ({"q_noise/td_error": ""}, "TD error"),
        ({"q_noise/q_mean": ""}, "mean Q"),
        ({"actor/advantage": ""}, "advantage of the data"),
        ({"actor/weights_max": ""}, "largest weight"),
        ({"actor/entropy": ""}, "policy entropy"),
    ]
    curve_checks: ClassVar = [
        grew("q_noise/td_error", 2.0, "lower critic_lr"),
        grew("q_noise/q_mean", 3.0, "over-estimation: more critics", floor=1.0),
    ]

    def sac_options(self) -> SACOptions:
        """Of the critics alone: their targets have no entropy, and nothing here has a temperature to learn."""
        return SACOptions(backup=self.config.backup, backup_entropy=False, fixed_alpha=True)

    def learn_actor(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """``-w log π(a | s)``, by the advantage over an action of the policy's own."""
        with torch.no_grad():
            drawn, log_prob = self.actor.draw(batch)
            values = [
                reduce_ensemble(self.sac.values(batch, action), self.config.backup)
                for action in (batch.get("action"), drawn)
            ]
            advantage = values[0] - values[1]
            weights = awr_weights(advantage, self.config.weight_temperature, self.config.max_weight)
        data_log_prob = self.actor.get_dist(batch).log_prob(batch.get("action"))
        loss = -(weights * data_log_prob).mean()
        norm = self.descend("actor", loss)
        self.move_average()
        return scalars(
            "actor",
            loss=loss,
            grad_norm=norm,
            q_mean=values[1],
            advantage=advantage,
            advantage_std=advantage.std(),
            weights_mean=weights,
            weights_max=weights.max(),
            effective_share=effective_share(weights),
            bc_loss=-data_log_prob,
            entropy=-log_prob,
        )

    def actor_tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """No temperature among them."""
        return ActorAgent.actor_tensors(self)
