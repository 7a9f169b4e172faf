"""LP-DS: the prior's noise, shifted by a learned mean that a Lagrange multiplier keeps near 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, exploration_type

from dsrl_torchrl.agents.actor_agent import ActorAgent, ActorConfig
from dsrl_torchrl.agents.agent import scalars
from dsrl_torchrl.agents.curve_checks import ran_away
from dsrl_torchrl.agents.dsrl_na import DSRLNA
from dsrl_torchrl.networks.config import NetworkConfig
from dsrl_torchrl.networks.critics import Critic, reduce_ensemble
from dsrl_torchrl.networks.deterministic_actor import make_deterministic_actor
from dsrl_torchrl.options import option


class LPDS(DSRLNA):
    """``w = ε + Δ(s)``, ``ε ~ N(0, I)``: ``Δ`` climbs ``Q^W`` while ``E ‖Δ(s)‖² ≤ δ`` (Eq. 32).

    Lagrangian Perturbation Diffusion Steering, arXiv 2606.01151, with DSRL-NA's critics (Eq. 12 and 13), whose noises
    ``w ~ N(0, I)`` are the ones that ``Q^W`` is asked about here, but for the shift. It begins as the base policy. Its
    noise has no bound but the trust region's: ``latent.action_magnitude`` only scales what the critics read.
    """

    class Config(ActorConfig):
        """Hyper-parameters of LP-DS."""

        backup: Literal["min", "mean"] = option("min", "over the ensemble, in targets and actor")
        trust_region: float = option(0.25, "bound of the mean square of a component of the shift, δ / latent_dim", gt=0)
        multiplier_init: float = option(1.0, "first Lagrange multiplier λ", ge=0)
        multiplier_lr: float = option(1e-3, "step of the dual ascent of λ", gt=0)

    actor: ShiftedPrior
    multiplier: Tensor
    panels: ClassVar = [
        *DSRLNA.panels[:4],
        ({"actor/squared_shift": ""}, "mean $‖Δ‖^2$"),
        ({"actor/multiplier": ""}, "Lagrange multiplier λ"),
    ]
    curve_checks: ClassVar = [
        *DSRLNA.curve_checks[:2],
        ran_away("actor/multiplier", 100.0, "lower multiplier_lr, or widen trust_region"),
    ]

    def make_actor(self, env) -> ShiftedPrior:
        """The shift, 0 at first."""
        encoder = self.actor_encoder
        return ShiftedPrior(encoder.out_features, env.latent_dim, self.networks, encoder.out_keys[0]).to(self.device)

    def make_actor_losses(self, q_noise: Critic) -> None:
        """``Q^W`` is the distillation's."""
        self.delta = self.config.trust_region * self.decoder.latent_dim
        self.register_buffer("multiplier", torch.tensor(self.config.multiplier_init, device=self.device))

    def draw_noise(self, observations: TensorDictBase) -> tuple[Tensor, Tensor]:
        """``w ~ N(Δ(s), I)``; the entropy is the prior's, whatever is learned."""
        return self.actor.draw(observations), torch.zeros(observations.batch_size, device=self.device)

    def temperature(self) -> float:
        """The values hold no entropy."""
        return 0.0

    def learn_actor(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """``L = -E[Q^W(s, ε + Δ(s))] + λ (E ‖Δ(s)‖² - δ)``, then ``λ <- max(0, λ + η (E ‖Δ(s)‖² - δ))`` (Eq. 32)."""
        shift = self.actor.shift(batch)
        noise = torch.randn_like(shift) + shift
        critic, params = self.aliasing_loss.q_noise, self.aliasing_loss.q_noise_params.data  # no gradient reaches it
        q = reduce_ensemble(critic.ensemble(params, batch, noise), self.config.backup)
        squared = shift.square().sum(-1).mean()
        excess = squared - self.delta
        loss = self.multiplier * excess - q.mean()
        norm = self.descend("actor", loss)
        with torch.no_grad():
            self.multiplier.add_(self.config.multiplier_lr * excess).clamp_(min=0.0)
        self.move_average()
        multiplier = self.multiplier.clone()
        return scalars("actor", loss=loss, grad_norm=norm, q_mean=q, squared_shift=squared, multiplier=multiplier)

    def actor_tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Shift, average and multiplier."""
        return {**ActorAgent.actor_tensors(self), "multiplier": {"multiplier": self.multiplier}}


class ShiftedPrior(TensorDictModuleBase):
    """``features`` -> ``action`` ``[*B, latent_dim]``: ``ε + Δ(s)``; by its mode ``Δ(s)``.

    Args:
        in_features: size of the features.
        latent_dim: size of the noise.
        networks: sizes.
        in_key: of the features.
    """

    def __init__(self, in_features: int, latent_dim: int, networks: NetworkConfig, in_key: NestedKey) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [in_key], ["action"]
        self.mean = make_deterministic_actor(
            in_features,
            latent_dim,
            nn.Identity(),
            **networks.sizes,
            layer_norm=networks.actor_layer_norm,
            in_key=in_key,
        )

    def shift(self, tensordict: TensorDictBase) -> Tensor:
        """``Δ(s)``, with gradients."""
        return self.mean.module(tensordict.get(self.in_keys[0]))

    def draw(self, tensordict: TensorDictBase) -> Tensor:
        """``w ~ N(Δ(s), I)``, from the global generator."""
        shift = self.shift(tensordict)
        return torch.randn_like(shift) + shift

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        sampled = exploration_type() is ExplorationType.RANDOM
        return tensordict.set("action", self.draw(tensordict) if sampled else self.shift(tensordict))
