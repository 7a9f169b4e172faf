"""LPS: a latent policy on the sphere of the prior's typical noises climbs ``Q^A`` through the frozen decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.objectives import ValueEstimators

from dsrl_torchrl.agents.actor_agent import ACTOR, ActorAgent, ActorConfig
from dsrl_torchrl.agents.agent import flat, scalars
from dsrl_torchrl.agents.curve_checks import grew
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.config import make_critics
from dsrl_torchrl.networks.critics import reduce_ensemble
from dsrl_torchrl.networks.deterministic_actor import make_deterministic_actor
from dsrl_torchrl.networks.latent_actor import LatentPolicy
from dsrl_torchrl.objectives.polyak import PolyakUpdate
from dsrl_torchrl.objectives.q_action import QActionLoss
from dsrl_torchrl.options import option
from dsrl_torchrl.policies.base_policy import require_differentiable


class LPS(ActorAgent):
    """``w = √D f(s) / ‖f(s)‖`` climbs ``Q^A(s, decode(s, w))`` itself; there is no ``Q^W`` (Eq. 33).

    Latent Policy Steering, Im et al. 2026, arXiv 2603.05296: offline, through a one-step decoder
    (``base_policy=shortcut``, ``sampler_steps=1``; any differentiable one works here, through all of its steps). The
    published decoder is trained on noises of the sphere; a base policy of ``N(0, I)`` has met nearly the same, as
    ``‖w‖ ≈ √D``. Exploration, which an online stage needs, is ours.
    """

    class Config(ActorConfig):
        """Hyper-parameters of LPS."""

        backup: Literal["min", "mean"] = option("mean", "over the ensemble, in targets and actor")
        exploration_noise: float = option(
            0.1, "std of the acting policy's noise, which is put back on the sphere", ge=0
        )

    actor_can_encode: ClassVar = True
    through_decoder: ClassVar = True
    panels: ClassVar = [
        ({"q_action/td_error": ""}, "TD error of $Q^A$"),
        ({"q_action/q_mean": "$Q^A$, data", "actor/q_mean": "$Q^A$, policy"}, "mean Q"),
    ]
    curve_checks: ClassVar = [
        grew("q_action/td_error", 2.0, "lower critic_lr"),
        grew("q_action/q_mean", 3.0, "over-estimation: a smaller actor_lr", floor=1.0),
    ]

    def __init__(self, env, config=None, networks=None, data=None) -> None:
        require_differentiable(env.decoder.base_policy, type(self).__name__)
        super().__init__(env, config, networks, data)
        config, encoder = self.config, self.actor_encoder
        self.actor = make_deterministic_actor(
            encoder.out_features,
            self.decoder.latent_dim,
            OnSphere(),
            **self.networks.sizes,
            layer_norm=self.networks.actor_layer_norm,
            in_key=encoder.out_keys[0],
            near_zero=False,  # a direction
        ).to(self.device)
        self.q_action_loss = QActionLoss(
            make_critics(env, self.networks, self.encoder.out_features)["q_action"],
            self.draw_noise,
            self.decoder.decode,
            num_critics=self.networks.num_critics,
            backup=config.backup,
            temperature=0.0,
            next_keys=self.in_keys,
        ).make_value_estimator(ValueEstimators.TD0, gamma=config.gamma)
        self.target_updater = PolyakUpdate(self.q_action_loss, tau=config.tau)
        learned = [*self.q_action_loss.q_action_params.values(True, True), *self.encoder.parameters()]
        self.optimise("q_action", learned, config.critic_lr)
        self.optimise("actor", self.actor_parameters(self.actor), config.actor_lr)
        explore = TensorDictModule(Explore(config.exploration_noise), in_keys=["action"], out_keys=["action"])
        self.policy = LatentPolicy(encoder, TensorDictSequential(self.actor, explore))
        self.kept_policy = self.keep_average(self.actor)

    def draw_noise(self, observations: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The noise of the TD target: the actor's, without entropy."""
        noise = self.actor.module(observations.get(self.actor.in_keys[0]))
        return noise, torch.zeros(observations.batch_size, device=self.device)

    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """``Q^A`` by TD (Eq. 12), then the actor."""
        batch = self.encode(batch, ACTOR in parts)
        out = self.q_action_loss(batch)
        loss, q, td_error = out["loss_q_action"], out["q_action"], out["td_error"]
        norm = self.descend("q_action", loss)
        metrics = scalars("q_action", loss=loss, grad_norm=norm, td_error=td_error, q_mean=q, q_std=q.std())
        if ACTOR in parts:
            metrics |= self.learn_actor(self.detached(batch))
        self.move_targets()
        return TensorDict(metrics)

    def learn_actor(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """``L = -E[Q^A(s, decode(s, w))] / E|Q^A(s, decode(s, w))|``, the denominator without gradient (Eq. 33)."""
        noise = self.draw_noise(batch)[0]
        # By the chain rule at the noise: neither the critic nor the frozen policy gets a gradient.
        w = noise.detach().requires_grad_()
        chunk = self.decoder.decode(batch, w)
        if not chunk.requires_grad:
            raise UserError(
                f"{type(self.decoder.base_policy).__name__} is not differentiable in its noise, which LPS needs: run "
                "its forward without torch.no_grad, or choose another algorithm="
            )
        q = reduce_ensemble(self.q_action_loss.values(batch, chunk), self.config.backup)
        loss = -q.mean() / q.detach().abs().mean()
        (gradient,) = torch.autograd.grad(loss, w)
        norm = self.descend("actor", (gradient * noise).sum())
        self.move_average()
        return scalars("actor", loss=loss, grad_norm=norm, q_mean=q)

    def noise_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        return self.chunk_values(observations, self.decoder.decode(observations, noise))

    def chunk_values(self, observations: TensorDictBase, chunk: Tensor) -> Tensor:
        return self.q_action_loss.values(self.encoder(observations.copy()), chunk)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {
            **self.actor_tensors(),
            "q_action": flat(self.q_action_loss.q_action_params),
            "q_action_target": flat(self.q_action_loss.target_q_action_params),
        }


def on_sphere(x: Tensor) -> Tensor:
    """``√D x / ‖x‖``: ``[*B, D]`` to the sphere near which ``N(0, I)`` has its mass."""
    return x.shape[-1] ** 0.5 * F.normalize(x, dim=-1)


class OnSphere(nn.Module):
    """:func:`on_sphere`."""

    def forward(self, x: Tensor) -> Tensor:
        """``[*B, D]``."""
        return on_sphere(x)


class Explore(nn.Module):
    """Adds noise of standard deviation ``sigma`` and goes back to the sphere; by its mode it does nothing."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, w: Tensor) -> Tensor:
        """``[*B, D]`` on the sphere."""
        sampled = exploration_type() is ExplorationType.RANDOM
        return on_sphere(w + self.sigma * torch.randn_like(w)) if sampled else w
