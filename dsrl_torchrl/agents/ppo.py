"""PPO on the noise: on-policy steps of a squashed Gaussian, whose advantages discount by ``γ^k``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss

from dsrl_torchrl.agents.actor_agent import ACTOR, ActorAgent, ActorConfig
from dsrl_torchrl.agents.agent import flat, scalars
from dsrl_torchrl.agents.curve_checks import collapsed_early, grew
from dsrl_torchrl.data.macro_transitions import LOG_PROB_KEY
from dsrl_torchrl.networks.config import make_actor
from dsrl_torchrl.networks.encoders import FEATURES_KEY
from dsrl_torchrl.networks.latent_actor import ScoredPolicy
from dsrl_torchrl.networks.mlp import make_mlp
from dsrl_torchrl.objectives.macro_discount import use_macro_discount
from dsrl_torchrl.options import option, with_defaults


class PPO(ActorAgent):
    """Schulman et al. 2017, by TorchRL's ``ClipPPOLoss`` and ``GAE`` on macro steps (Eq. 35 and 36).

    The values of states, and with them the advantages, are computed once, when a rollout is complete. Its epochs are
    ``utd * batch_size``.
    """

    class Config(with_defaults(ActorConfig, batch_size=64, critic_only_updates=0, actor_average=0.0)):  # type: ignore[misc]
        """Hyper-parameters of PPO."""

        lmbda: float = option(0.95, "λ of GAE, per macro step", ge=0, le=1)
        clip_epsilon: float = option(0.2, "bound of the ratio's distance from 1", gt=0, lt=1)
        entropy_coeff: float = option(0.001, "of the entropy, a Monte Carlo estimate, in the actor's loss", ge=0)

    actor_can_encode: ClassVar = True
    reads_noise: ClassVar = True
    on_policy: ClassVar = True
    panels: ClassVar = [
        ({"value/loss": ""}, "squared error of $V$"),
        ({"value/explained_variance": ""}, "explained variance of $V$"),
        ({"actor/kl": ""}, "KL from the acting policy"),
        ({"actor/clip_fraction": ""}, "clipped share"),
        ({"actor/entropy": ""}, "policy entropy"),
    ]
    curve_checks: ClassVar = [
        grew("actor/kl", 10.0, "lower actor_lr, or stage2.utd", floor=0.01),
        collapsed_early("actor/entropy", -2.0, "raise entropy_coeff, or lower actor_lr"),
    ]

    def __init__(self, env, config=None, networks=None, data=None) -> None:
        super().__init__(env, config, networks, data)
        config = self.config
        self.actor = make_actor(env, self.networks, self.actor_encoder.out_features, self.actor_encoder.out_keys[0])
        self.loss = ClipPPOLoss(
            self.actor,
            self._make_value(),
            clip_epsilon=config.clip_epsilon,
            entropy_coeff=config.entropy_coeff,
            critic_coeff=0.0,  # V has a step of its own, before the actor's
            loss_critic_type="l2",
            normalize_advantage=True,
        )
        self.loss.set_keys(sample_log_prob=LOG_PROB_KEY, action="action")
        use_macro_discount(self.loss, config.gamma, config.lmbda)
        learned = [*self.loss.critic_network_params.values(True, True), *self.encoder.parameters()]
        self.optimise("value", learned, config.critic_lr)
        self.optimise("actor", self.actor_parameters(self.actor), config.actor_lr)
        self.policy = ScoredPolicy(self.actor_encoder, self.actor, LOG_PROB_KEY)
        self.kept_policy = self.keep_average(self.actor)

    def _make_value(self) -> ValueOperator:
        """``V``: ``features`` to ``state_value`` ``[*B, 1]``."""
        sizes, norm = self.networks.sizes, self.networks.layer_norm
        network = make_mlp(self.encoder.out_features, **sizes, layer_norm=norm, out_features=1)
        return ValueOperator(network.to(self.device), in_keys=[FEATURES_KEY])

    @torch.no_grad()
    def finish_rollout(self, rollout: TensorDictBase) -> TensorDictBase:
        """Adds ``advantage`` and ``value_target``, ``[n, T, 1]`` (Eq. 35)."""
        seen = self.encoder(rollout.copy()).set("next", self.encoder(rollout.get("next").copy()))
        params = self.loss.critic_network_params.detach()  # GAE turns gradients on
        self.loss.value_estimator(seen, params=params, target_params=params)
        return rollout.copy().update(seen.select("advantage", "value_target"))

    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """``V`` on its targets, then the actor (Eq. 36)."""
        batch = self.encode(batch, ACTOR in parts)
        error, _, explained = self.loss.loss_critic(batch)
        loss, target = error.mean(), batch.get("value_target")
        norm = self.descend("value", loss)
        metrics = scalars("value", loss=loss, grad_norm=norm, explained_variance=explained, target_mean=target)
        if ACTOR in parts:
            out = self.loss(self.detached(batch))
            loss = out["loss_objective"] + out["loss_entropy"]
            norm, clipped = self.descend("actor", loss), out["clip_fraction"]
            self.move_average()
            metrics |= scalars("actor", loss=loss, grad_norm=norm, clip_fraction=clipped, kl=out["kl_approx"])
            metrics |= scalars("actor", entropy=out["entropy"])
        self.move_target_encoder()
        return TensorDict(metrics)

    def noise_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        """``V(s)`` for every noise, ``[1, *B]``: it tells states apart, not noises."""
        with self.loss.critic_network_params.to_module(self.loss.critic_network):
            value = self.loss.critic_network(self.encoder(observations.copy())).get("state_value").squeeze(-1)
        return value.expand(1, *noise.shape[:-1])

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {
            **self.actor_tensors(),
            "value": flat(self.loss.critic_network_params),
        }
