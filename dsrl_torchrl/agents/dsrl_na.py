"""DSRL-NA as published: ``Q^A`` in action space from any data, distilled into ``Q^W``, which SAC's actor climbs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from tensordict import TensorDict, TensorDictBase, TensorDictParams
from torch import Tensor
from torchrl.objectives import ValueEstimators

from dsrl_torchrl.agents.actor_agent import ACTOR, ActorAgent, ActorConfig
from dsrl_torchrl.agents.agent import flat, scalars
from dsrl_torchrl.agents.curve_checks import collapsed_early, grew, ran_away
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.networks.config import make_actor, make_critics
from dsrl_torchrl.networks.critics import Critic
from dsrl_torchrl.networks.latent_actor import LatentActor, LatentPolicy
from dsrl_torchrl.objectives.noise_aliasing import NoiseAliasingLoss
from dsrl_torchrl.objectives.polyak import PolyakUpdate
from dsrl_torchrl.objectives.q_action import QActionLoss
from dsrl_torchrl.objectives.sac import LatentSACLoss, SACActorOptions, capped, make_sac_loss
from dsrl_torchrl.options import with_defaults


class SACActorAgent(ActorAgent):
    """An agent whose actor and temperature are SAC's."""

    actor_can_encode: ClassVar = True
    actor: LatentActor
    sac: LatentSACLoss

    def actor_tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Actor, average and temperature, by file."""
        return {**super().actor_tensors(), "temperature": {"log_alpha": self.sac.log_alpha.data}}

    def learn_actor(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """The actor on ``Q^W`` (Eq. 9), and the temperature (Eq. 10)."""
        loss, out = self.sac.actor_loss(batch)
        norm = self.descend("actor", loss)
        metrics = scalars("actor", loss=loss, grad_norm=norm, entropy=-out["log_prob"], q_mean=out["q"])
        if "alpha" in self.optimisers:
            loss_alpha = self.sac.alpha_loss(out["log_prob"]).mean()
            self.step("alpha", loss_alpha)
            metrics |= scalars("actor", alpha_loss=loss_alpha)
        self.move_average()
        return metrics | scalars("actor", alpha=self.sac._alpha)


class DSRLNA(SACActorAgent):
    """Noise aliasing (Wagenmaker et al. 2025): TD on executed chunks, distillation and SAC's actor in every update."""

    entropy_cap: float | None = None  # of -log π in the TD targets, in ±action_magnitude

    class Config(with_defaults(ActorConfig, actor_average=0.0), SACActorOptions):  # type: ignore[misc]
        """Hyper-parameters of DSRL-NA."""

    panels: ClassVar = [
        ({"q_action/td_error": ""}, "TD error of $Q^A$"),
        (
            {"q_action/q_mean": "$Q^A$, data", "q_noise/q_mean": "$Q^W$, prior", "actor/q_mean": "$Q^W$, policy"},
            "mean Q",
        ),
        ({"q_noise/loss": ""}, "distillation loss"),
        ({"actor/loss": ""}, "actor loss"),
        ({"actor/alpha": ""}, "temperature α"),
        ({"actor/entropy": ""}, "policy entropy"),
    ]
    curve_checks: ClassVar = [
        grew("q_action/td_error", 2.0, "lower critic_lr"),
        grew("q_action/q_mean", 3.0, "over-estimation: more critics, or a smaller actor_lr", floor=1.0),
        ran_away("actor/alpha", 10.0, "lower the target entropy"),
        collapsed_early("actor/entropy", -2.0, "raise alpha_init or critic_only_updates"),
    ]

    def __init__(self, env, config=None, networks=None, data=None) -> None:
        super().__init__(env, config, networks, data)
        config, decoder, num_critics = self.config, self.decoder, self.networks.num_critics
        self.actor = self.make_actor(env)
        critics = make_critics(env, self.networks, self.encoder.out_features)
        q_noise_params = self.make_actor_losses(critics["q_noise"])
        self.q_action_loss = QActionLoss(
            critics["q_action"],
            self.draw_noise,
            decoder.decode,
            num_critics=num_critics,
            backup=config.backup,
            temperature=self.temperature,
            next_keys=self.in_keys,
        ).make_value_estimator(ValueEstimators.TD0, gamma=config.gamma)
        self.aliasing_loss = NoiseAliasingLoss(
            critics["q_noise"],
            self.q_action_loss.values,
            decoder.decode,
            latent_dim=decoder.latent_dim,
            num_critics=num_critics,
            q_noise_params=q_noise_params,
            decode_keys=self.in_keys,
        )
        self.target_updater = PolyakUpdate(self.q_action_loss, tau=config.tau)
        learned = [*self.q_action_loss.q_action_params.values(True, True), *self.encoder.parameters()]
        self.optimise("q_action", learned, config.critic_lr)
        self.optimise("q_noise", self.aliasing_loss.q_noise_params.values(True, True), config.critic_lr)
        self.optimise("actor", self.actor_parameters(self.actor), config.actor_lr)
        self.policy = LatentPolicy(self.actor_encoder, self.actor)
        self.kept_policy = self.keep_average(self.actor)

    def make_actor(self, env: LatentActionEnv) -> Any:
        """``π^W``."""
        return make_actor(env, self.networks, self.actor_encoder.out_features, self.actor_encoder.out_keys[0])

    def make_actor_losses(self, q_noise: Critic) -> TensorDictParams | None:
        """SAC's actor and temperature losses; returns the parameters of ``Q^W`` where they hold it."""
        self.sac = make_sac_loss(
            self.actor,
            q_noise,
            self.config,
            latent_dim=self.decoder.latent_dim,
            action_magnitude=self.decoder.action_magnitude,
            gamma=self.config.gamma,
            num_critics=self.networks.num_critics,
            delay_qvalue=False,
        )
        self.entropy_cap = self.sac.entropy_cap
        if not self.config.fixed_alpha:
            self.optimise("alpha", [self.sac.log_alpha], self.config.alpha_lr)
        return self.sac.qvalue_network_params

    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """``Q^A`` by TD, ``Q^W`` by distillation, then the actor."""
        batch = self.encode(batch, ACTOR in parts)
        metrics = self.learn_q_action(batch)
        batch = self.detached(batch)
        metrics |= self.distil(batch)
        if ACTOR in parts:
            metrics |= self.learn_actor(batch)
        self.move_targets()
        return TensorDict(metrics)

    def draw_noise(self, observations: TensorDictBase) -> tuple[Tensor, Tensor]:
        """``w ~ π^W(· | s)`` and ``log π(w | s)``, as the TD targets count it."""
        noise, log_prob = self.actor.draw(observations)
        return noise, capped(log_prob, self.entropy_cap)

    def temperature(self) -> Tensor | float:
        """α, as the TD targets weigh the entropy."""
        return self.sac._alpha if self.config.backup_entropy else 0.0

    def learn_q_action(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """``Q^A`` by TD (Eq. 12)."""
        out = self.q_action_loss(batch)
        loss, q = out["loss_q_action"], out["q_action"]
        norm = self.descend("q_action", loss)
        td_error = out["td_error"]
        return scalars("q_action", loss=loss, grad_norm=norm, td_error=td_error, q_mean=q, q_std=q.std())

    def distil(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """``Q^A`` into ``Q^W`` (Eq. 13)."""
        out = self.aliasing_loss(batch)
        loss = out["loss_noise_aliasing"]
        return scalars("q_noise", loss=loss, grad_norm=self.descend("q_noise", loss), q_mean=out["q_noise"])

    def noise_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        return self.aliasing_loss.values(self.encoder(observations.copy()), noise)

    def chunk_values(self, observations: TensorDictBase, chunk: Tensor) -> Tensor:
        return self.q_action_loss.values(self.encoder(observations.copy()), chunk)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {
            **self.actor_tensors(),
            "q_noise": flat(self.aliasing_loss.q_noise_params),
            "q_action": flat(self.q_action_loss.q_action_params),
            "q_action_target": flat(self.q_action_loss.target_q_action_params),
        }
