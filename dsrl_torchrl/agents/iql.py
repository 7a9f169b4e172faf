"""IQL: values by expectile regression on the data's actions alone, and a Gaussian policy that imitates the better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.modules import ValueOperator
from torchrl.objectives import IQLLoss

from dsrl_torchrl.agents.actor_agent import ACTOR, ActorAgent, ActorConfig
from dsrl_torchrl.agents.agent import flat, scalars
from dsrl_torchrl.agents.awr import effective_share
from dsrl_torchrl.agents.curve_checks import grew, ran_away
from dsrl_torchrl.networks.config import make_actor, make_critics
from dsrl_torchrl.networks.encoders import FEATURES_KEY
from dsrl_torchrl.networks.latent_actor import LatentPolicy
from dsrl_torchrl.networks.mlp import make_mlp
from dsrl_torchrl.objectives.macro_discount import use_macro_discount
from dsrl_torchrl.objectives.polyak import PolyakUpdate
from dsrl_torchrl.options import option, with_defaults

MAX_WEIGHT = 100.0  # TorchRL's


class IQL(ActorAgent):
    """Implicit Q-learning (Kostrikov et al. 2022), by TorchRL's ``IQLLoss`` on macro transitions (Eq. 29).

    ``alpha_init`` adds what some implementations carry over from SAC: ``α log π`` of the policy's own actions, and a
    temperature that SAC's rule moves to an entropy of -1 per dimension. IQL itself has neither.
    """

    class Config(with_defaults(ActorConfig, critic_only_updates=1_000)):  # type: ignore[misc]
        """Hyper-parameters of IQL."""

        expectile: float = option(0.7, "of the data's Q that V estimates", gt=0, lt=1)
        inverse_temperature: float = option(3.0, "of the advantages' exponents, in units of the return", gt=0)
        alpha_init: float = option(0.0, "first temperature of an entropy bonus, which adapts; 0: no bonus", ge=0)

    reads_noise: ClassVar = True
    panels: ClassVar = [
        ({"q_noise/td_error": ""}, "TD error"),
        ({"q_noise/q_mean": "Q", "actor/value_mean": "V"}, "mean value"),
        ({"actor/advantage": ""}, "advantage of the data"),
        ({"actor/weights_max": ""}, "largest weight"),
        ({"actor/entropy": ""}, "policy entropy"),
    ]
    curve_checks: ClassVar = [
        grew("q_noise/td_error", 2.0, "lower critic_lr"),
        grew("q_noise/q_mean", 3.0, "over-estimation: more critics", floor=1.0),
        ran_away("actor/alpha", 10.0, "set alpha_init=0"),
    ]

    def __init__(self, env, config=None, networks=None, data=None) -> None:
        super().__init__(env, config, networks, data)
        config, features = self.config, self.encoder.out_features
        self.actor = make_actor(env, self.networks, features)
        value = make_mlp(features, **self.networks.sizes, layer_norm=False, out_features=1)
        self.loss = IQLLoss(
            self.actor,
            make_critics(env, self.networks, features)["q_noise"],
            ValueOperator(value.to(self.device), in_keys=[FEATURES_KEY]),
            num_qvalue_nets=self.networks.num_critics,
            expectile=config.expectile,
            temperature=config.inverse_temperature,
            loss_function="l2",
        )
        use_macro_discount(self.loss, config.gamma)
        self.target_updater = PolyakUpdate(self.loss, tau=config.tau)
        learned = [*self.loss.qvalue_network_params.values(True, True), *self.encoder.parameters()]
        self.optimise("q_noise", learned, config.critic_lr)
        self.optimise("value", self.loss.value_network_params.values(True, True), config.critic_lr)
        self.optimise("actor", self.actor.parameters(), config.actor_lr)
        self.log_alpha = None
        if config.alpha_init:
            self.log_alpha = nn.Parameter(torch.tensor(math.log(config.alpha_init), device=self.device))
            self.optimise("alpha", [self.log_alpha], config.actor_lr)
        self.policy = LatentPolicy(self.encoder, self.actor)
        self.kept_policy = self.keep_average(self.actor)

    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """Q by TD to V, V by expectile regression to the target Q, then the actor."""
        batch = self.encode(batch)
        with torch.no_grad():
            q, value = self.loss_values(batch)
        loss, out = self.loss.qvalue_loss(batch)
        norm, error = self.descend("q_noise", loss), out["td_error"].sqrt().max(0)[0]
        batch = self.detached(batch)
        metrics = scalars("q_noise", loss=loss, grad_norm=norm, td_error=error, q_mean=q, q_std=q.std())
        self.step("value", self.loss.value_loss(batch)[0])
        if ACTOR in parts:
            metrics |= self.learn_actor(batch, value)
        self.move_targets()
        return TensorDict(metrics)

    def loss_values(self, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """``Q_i(s, a)`` ``[N, *B]`` of the data's actions, and ``V(s)`` ``[*B]``."""
        critic, network = self.loss.qvalue_network, self.loss.value_network
        q = critic.ensemble(self.loss.qvalue_network_params, batch, batch.get("action"))
        with self.loss.value_network_params.to_module(network):
            return q, network.module(batch.get(FEATURES_KEY)).squeeze(-1)

    def learn_actor(self, batch: TensorDictBase, value: Tensor) -> dict[str, Tensor]:
        """``-exp(β A) log π(a | s)`` with weights up to 100, and the entropy bonus where there is one."""
        loss, _ = self.loss.actor_loss(batch.copy())
        log_alpha = self.log_alpha
        with torch.set_grad_enabled(log_alpha is not None):
            _, log_prob = self.actor.draw(batch)
        metrics = scalars("actor", entropy=-log_prob)
        if log_alpha is not None:
            metrics |= scalars("actor", alpha=log_alpha.exp())
            loss = loss + log_alpha.detach().exp() * log_prob.mean()
        metrics |= scalars("actor", loss=loss, grad_norm=self.descend("actor", loss))
        if log_alpha is not None:
            target = -float(self.decoder.latent_dim)
            self.step("alpha", -(log_alpha * (log_prob.detach() + target)).mean())
        self.move_average()
        with torch.no_grad():
            critic, params = self.loss.qvalue_network, self.loss.target_qvalue_network_params
            advantage = critic.ensemble(params, batch, batch.get("action")).min(0)[0] - value
            weights = (self.config.inverse_temperature * advantage).exp().clamp(max=MAX_WEIGHT)
            data_log_prob = self.actor.get_dist(batch).log_prob(batch.get("action"))
        return metrics | scalars(
            "actor",
            advantage=advantage,
            advantage_std=advantage.std(),
            value_mean=value,
            weights_mean=weights,
            weights_max=weights.max(),
            effective_share=effective_share(weights),
            bc_loss=-data_log_prob,
        )

    def noise_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        critic, params = self.loss.qvalue_network, self.loss.qvalue_network_params
        return critic.ensemble(params, self.encoder(observations.copy()), noise)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        temperature = {} if self.log_alpha is None else {"temperature": {"log_alpha": self.log_alpha.data}}
        return {
            **self.actor_tensors(),
            **temperature,
            "q_noise": flat(self.loss.qvalue_network_params),
            "q_noise_target": flat(self.loss.target_qvalue_network_params),
            "q_value": flat(self.loss.value_network_params),
        }
