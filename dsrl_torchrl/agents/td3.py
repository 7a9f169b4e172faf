"""TD3 on the noise: a deterministic latent policy climbs the first of two ``Q^W``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import LossModule, TD3Loss

from dsrl_torchrl.agents.actor_agent import ACTOR, ActorAgent, ActorConfig
from dsrl_torchrl.agents.agent import flat, scalars
from dsrl_torchrl.agents.curve_checks import grew
from dsrl_torchrl.networks.config import make_critics
from dsrl_torchrl.networks.critics import Critic
from dsrl_torchrl.networks.deterministic_actor import make_deterministic_actor
from dsrl_torchrl.networks.latent_actor import LatentPolicy
from dsrl_torchrl.objectives.macro_discount import use_macro_discount
from dsrl_torchrl.objectives.polyak import PolyakUpdate
from dsrl_torchrl.options import Options, option, with_defaults


class TD3Options(Options):
    """Hyper-parameters of TD3's losses and exploration; noises in units of ``action_magnitude``."""

    exploration_noise: float = option(0.1, "std of the acting policy's Gaussian noise", ge=0)
    policy_noise: float = option(0.2, "std of the target policy's smoothing noise", ge=0)
    noise_clip: float = option(0.5, "bound of the smoothing noise", gt=0)


class TD3(ActorAgent):
    """Fujimoto et al. 2018, by TorchRL's ``TD3Loss`` on macro transitions (Eq. 17)."""

    class Config(with_defaults(ActorConfig, actor_interval=2, critic_only_updates=3_000), TD3Options):  # type: ignore[misc]
        """Hyper-parameters of TD3."""

    reads_noise: ClassVar = True
    panels: ClassVar = [
        ({"q_noise/td_error": ""}, "TD error of $Q^W$"),
        ({"q_noise/q_mean": "$Q^W$, data", "actor/q_mean": "$Q^W$, policy"}, "mean Q"),
        ({"actor/loss": ""}, "actor loss"),
    ]
    curve_checks: ClassVar = [
        grew("q_noise/td_error", 2.0, "lower critic_lr"),
        grew("q_noise/q_mean", 3.0, "over-estimation: a smaller actor_lr", floor=1.0),
    ]

    def __init__(self, env, config=None, networks=None, data=None) -> None:
        super().__init__(env, config, networks, data)
        config = self.config
        self.actor = self._make_actor()
        self.loss = self.make_loss(make_critics(env, self.networks, self.encoder.out_features)["q_noise"])
        use_macro_discount(self.loss, config.gamma)
        self.target_updater = PolyakUpdate(self.loss, tau=config.tau)
        learned = [*self.loss.qvalue_network_params.values(True, True), *self.encoder.parameters()]
        self.optimise("q_noise", learned, config.critic_lr)
        self.optimise("actor", self.actor.parameters(), config.actor_lr)
        sigma = config.exploration_noise * self.decoder.action_magnitude
        explore = AdditiveGaussianModule(
            env.action_spec_unbatched, sigma_init=sigma, sigma_end=sigma, device=self.device
        )
        self.policy = LatentPolicy(self.encoder, TensorDictSequential(self.actor, explore))
        self.kept_policy = self.keep_average(self.actor)

    def make_loss(self, critic: Critic) -> LossModule:
        """TorchRL's, from one member of the critics."""
        return TD3Loss(self.actor, critic, **self.loss_options())

    def loss_options(self) -> dict[str, Any]:
        """Arguments of the loss, in units of the noise."""
        config, bound = self.config, self.decoder.action_magnitude
        return {
            "bounds": (-bound, bound),
            "num_qvalue_nets": self.networks.num_critics,
            "policy_noise": config.policy_noise * bound,
            "noise_clip": config.noise_clip * bound,
            "loss_function": "l2",
        }

    def _make_actor(self) -> TensorDictModule:
        """``features`` to ``action`` in ``±action_magnitude``, near zero noise at first."""
        return make_deterministic_actor(
            self.encoder.out_features,
            self.decoder.latent_dim,
            Squash(self.decoder.action_magnitude),
            **self.networks.sizes,
            layer_norm=self.networks.actor_layer_norm,
        ).to(self.device)

    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """Both critics by TD, then the actor."""
        batch = self.encode(batch)
        loss, out = self.critic_loss(batch)
        norm, q = self.descend("q_noise", loss), out["pred_value"]
        td_error = (q - out["target_value"]).abs().max(0)[0]
        metrics = scalars("q_noise", loss=loss, grad_norm=norm, td_error=td_error, q_mean=q, q_std=q.std())
        if ACTOR in parts:
            loss, out = self.loss.actor_loss(self.detached(batch))
            metrics |= scalars("actor", loss=loss, grad_norm=self.descend("actor", loss)) | self.actor_scalars(out)
            self.move_average()
        self.move_targets()
        return TensorDict(metrics)

    def critic_loss(self, batch: TensorDictBase) -> tuple[Tensor, TensorDictBase]:
        """Of both critics, and what is logged of it."""
        return self.loss.value_loss(batch)

    def actor_scalars(self, out: TensorDictBase) -> dict[str, Tensor]:
        """What is logged of the actor's loss beside itself."""
        return scalars("actor", q_mean=out["state_action_value_actor"])

    def noise_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        critic, params = self.loss.qvalue_network, self.loss.qvalue_network_params
        return critic.ensemble(params, self.encoder(observations.copy()), noise)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {
            **self.actor_tensors(),
            "target_actor": flat(self.loss.target_actor_network_params),
            "q_noise": flat(self.loss.qvalue_network_params),
            "q_noise_target": flat(self.loss.target_qvalue_network_params),
        }


class Squash(nn.Module):
    """``bound * tanh(x)``."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.bound * torch.tanh(x)
