"""DSRL-SAC: soft actor-critic whose action is the noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dsrl_torchrl.agents.actor_agent import ACTOR, ActorConfig
from dsrl_torchrl.agents.agent import flat, scalars
from dsrl_torchrl.agents.curve_checks import grew
from dsrl_torchrl.agents.dsrl_na import DSRLNA, SACActorAgent
from dsrl_torchrl.networks.config import make_actor, make_critics
from dsrl_torchrl.networks.latent_actor import LatentPolicy
from dsrl_torchrl.objectives.polyak import PolyakUpdate
from dsrl_torchrl.objectives.sac import SACOptions, make_sac_loss
from dsrl_torchrl.options import with_defaults


class DSRLSAC(SACActorAgent):
    """``Q^W`` by TD on transitions whose noise is known (Eq. 8), SAC's actor and temperature (Eq. 9 and 10)."""

    class Config(with_defaults(ActorConfig, critic_only_updates=3_000), with_defaults(SACOptions, alpha_init=0.05)):  # type: ignore[misc]
        """Hyper-parameters of DSRL-SAC."""

    reads_noise: ClassVar = True
    mirrored_as: ClassVar = {
        **SACActorAgent.mirrored_as,
        "q_noise/loss": "train/sac/critic_loss",
        "q_noise/grad_norm": "train/critic/grad_norm",
        "actor/loss": "train/sac/actor_loss",
        "actor/grad_norm": "train/actor/grad_norm",
        "actor/entropy": "train/actor/entropy",
        "actor/alpha_loss": "train/sac/alpha_loss",
        "actor/alpha": "train/sac/alpha",
    }
    panels: ClassVar = [
        ({"q_noise/td_error": ""}, "TD error of $Q^W$"),
        ({"q_noise/q_mean": "$Q^W$, data", "actor/q_mean": "$Q^W$, policy"}, "mean Q"),
        *DSRLNA.panels[3:],
    ]
    curve_checks: ClassVar = [
        grew("q_noise/td_error", 2.0, "lower critic_lr"),
        grew("q_noise/q_mean", 3.0, "over-estimation: more critics, or a smaller actor_lr", floor=1.0),
        *DSRLNA.curve_checks[2:],
    ]

    def __init__(self, env, config=None, networks=None, data=None) -> None:
        super().__init__(env, config, networks, data)
        options = self.sac_options()
        self.actor = make_actor(env, self.networks, self.actor_encoder.out_features, self.actor_encoder.out_keys[0])
        self.sac = make_sac_loss(
            self.actor,
            make_critics(env, self.networks, self.encoder.out_features)["q_noise"],
            options,
            latent_dim=self.decoder.latent_dim,
            action_magnitude=self.decoder.action_magnitude,
            gamma=self.config.gamma,
            num_critics=self.networks.num_critics,
        )
        self.target_updater = PolyakUpdate(self.sac, tau=self.config.tau)
        learned = [*self.sac.qvalue_network_params.values(True, True), *self.encoder.parameters()]
        self.optimise("q_noise", learned, self.config.critic_lr)
        self.optimise("actor", self.actor_parameters(self.actor), self.config.actor_lr)
        if not options.fixed_alpha:
            self.optimise("alpha", [self.sac.log_alpha], self.config.alpha_lr)
        self.policy = LatentPolicy(self.actor_encoder, self.actor)
        self.kept_policy = self.keep_average(self.actor)

    def sac_options(self) -> SACOptions:
        """Of the critics, the actor and the temperature."""
        return self.config

    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """``Q^W`` by TD, then the actor."""
        batch = self.encode(batch, ACTOR in parts)
        loss, out = self.sac.qvalue_v2_loss(batch)
        norm, q, td_error = self.descend("q_noise", loss), out["q"], out["td_error"]
        metrics = scalars("q_noise", loss=loss, grad_norm=norm, td_error=td_error, q_mean=q, q_std=q.std())
        if ACTOR in parts:
            metrics |= self.learn_actor(self.detached(batch))
        self.move_targets()
        return TensorDict(metrics)

    def noise_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        return self.sac.values(self.encoder(observations.copy()), noise)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {
            **self.actor_tensors(),
            "q_noise": flat(self.sac.qvalue_network_params),
            "q_noise_target": flat(self.sac.target_qvalue_network_params),
        }
