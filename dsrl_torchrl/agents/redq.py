"""REDQ on the noise: many ``Q^W``, of which each target takes the smallest of a random few."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.objectives import REDQLoss

from dsrl_torchrl.agents.actor_agent import ACTOR, ActorAgent, ActorConfig
from dsrl_torchrl.agents.agent import flat, scalars
from dsrl_torchrl.agents.curve_checks import grew, ran_away
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.config import make_actor, make_critics
from dsrl_torchrl.networks.latent_actor import LatentPolicy
from dsrl_torchrl.objectives.macro_discount import use_macro_discount
from dsrl_torchrl.objectives.polyak import PolyakUpdate
from dsrl_torchrl.options import option, with_defaults


class REDQ(ActorAgent):
    """Chen et al. 2021, by TorchRL's ``REDQLoss`` on macro transitions (Eq. 37); the ensemble is ``num_critics``."""

    class Config(with_defaults(ActorConfig, critic_only_updates=3_000)):  # type: ignore[misc]
        """Hyper-parameters of REDQ."""

        target_critics: int = option(2, "members that a target takes the smallest of", ge=1)
        alpha_init: float = option(0.03, "first temperature; with -1/0 rewards 0.1 is an upper bound", gt=0)
        alpha_lr: float = option(3e-4, "Adam's learning rate of the temperature", gt=0)
        target_entropy_per_dim: float = option(-0.5, "for noise scaled to [-1, 1]")

    reads_noise: ClassVar = True
    panels: ClassVar = [
        ({"q_noise/td_error": ""}, "TD error of $Q^W$"),
        ({"q_noise/q_mean": "$Q^W$, data", "actor/q_mean": "$Q^W$, policy"}, "mean Q"),
        ({"actor/alpha": ""}, "temperature α"),
        ({"actor/entropy": ""}, "policy entropy"),
    ]
    curve_checks: ClassVar = [
        grew("q_noise/td_error", 2.0, "lower critic_lr"),
        grew("q_noise/q_mean", 3.0, "over-estimation: more target_critics, or a smaller actor_lr", floor=1.0),
        ran_away("actor/alpha", 10.0, "lower the target entropy"),
    ]

    def __init__(self, env, config=None, networks=None, data=None) -> None:
        super().__init__(env, config, networks, data)
        config, dim = self.config, self.decoder.latent_dim
        check_members(config, self.networks.num_critics)
        self.actor = make_actor(env, self.networks, self.actor_encoder.out_features, self.actor_encoder.out_keys[0])
        self.loss = REDQLoss(
            self.actor,
            make_critics(env, self.networks, self.encoder.out_features)["q_noise"],
            num_qvalue_nets=self.networks.num_critics,
            sub_sample_len=config.target_critics,
            loss_function="l2",
            alpha_init=config.alpha_init,
            min_alpha=1e-10,  # TorchRL's 0.1 would be the temperature
            target_entropy=dim * (config.target_entropy_per_dim + math.log(self.decoder.action_magnitude)),
        )
        _ = self.loss.target_entropy  # made at its first use, and a checkpoint from before would miss it
        use_macro_discount(self.loss, config.gamma)
        self.target_updater = PolyakUpdate(self.loss, tau=config.tau)
        learned = [*self.loss.qvalue_network_params.values(True, True), *self.encoder.parameters()]
        self.optimise("q_noise", learned, config.critic_lr)
        self.optimise("actor", self.actor.parameters(), config.actor_lr)
        self.optimise("alpha", [self.loss.log_alpha], config.alpha_lr)
        self.policy = LatentPolicy(self.actor_encoder, self.actor)
        self.kept_policy = self.keep_average(self.actor)

    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """All critics by TD, then actor and temperature."""
        batch = self.encode(batch)
        with torch.no_grad():
            q = self._values(batch, batch.get("action"))
        loss = self.loss(batch)["loss_qvalue"]  # writes the largest squared error over the ensemble, too
        td_error, norm = batch.get("td_error").sqrt(), self.descend("q_noise", loss)
        metrics = scalars("q_noise", loss=loss, grad_norm=norm, td_error=td_error, q_mean=q, q_std=q.std())
        if ACTOR in parts:
            out = self.loss(self.detached(batch))
            loss, loss_alpha, entropy = out["loss_actor"], out["loss_alpha"], -out["action_log_prob_actor"]
            norm, q = self.descend("actor", loss), out["state_action_value_actor"]
            self.step("alpha", loss_alpha)
            self.move_average()
            metrics |= scalars("actor", loss=loss, grad_norm=norm, entropy=entropy, q_mean=q, alpha_loss=loss_alpha)
            metrics |= scalars("actor", alpha=self.loss.alpha)
        self.move_targets()
        return TensorDict(metrics)

    def _values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        return self.loss.qvalue_network.ensemble(self.loss.qvalue_network_params, observations, noise)

    def noise_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        return self._values(self.encoder(observations.copy()), noise)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {
            **self.actor_tensors(),
            "temperature": {"log_alpha": self.loss.log_alpha.data},
            "q_noise": flat(self.loss.qvalue_network_params),
            "q_noise_target": flat(self.loss.target_qvalue_network_params),
        }


def check_members(config: Any, num_critics: int) -> None:
    """Raises :class:`UserError` for options of :class:`REDQ` that do not go with an ensemble of that size."""
    if config.target_critics >= num_critics:
        raise UserError(
            f"target_critics ({config.target_critics}) must be below networks.num_critics ({num_critics}): a target "
            "takes some of them"
        )
    if config.compile:
        raise UserError("REDQ draws the members of its targets on the host: set algorithm.compile=false")
