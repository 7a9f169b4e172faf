"""One gradient update of DSRL-SAC."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate

from dsrl_torchrl.objectives.sac import LatentSACLoss


class SACUpdate(nn.Module):
    """``update(batch) -> metrics``: losses, backward, optimiser steps, target update, and no host synchronisation.

    Args:
        loss: the SAC loss; its parameters are trained in place.
        actor_lr, critic_lr, alpha_lr: Adam learning rates.
        tau: Polyak rate of the targets, ``θ_targ <- τ θ + (1 - τ) θ_targ``.
        max_grad_norm: clips each network's gradient norm; ``None`` only measures it.
    """

    def __init__(
        self,
        loss: LatentSACLoss,
        *,
        actor_lr: float,
        critic_lr: float,
        alpha_lr: float,
        tau: float,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.max_grad_norm = float("inf") if max_grad_norm is None else max_grad_norm
        self._actor_params = [p for p in loss.actor_network_params.values(True, True) if p.requires_grad]
        self._critic_params = [p for p in loss.qvalue_network_params.values(True, True) if p.requires_grad]
        self.actor_optimiser = torch.optim.Adam(self._actor_params, lr=actor_lr, fused=True)
        self.critic_optimiser = torch.optim.Adam(self._critic_params, lr=critic_lr, fused=True)
        self.alpha_optimiser = None if loss.fixed_alpha else torch.optim.Adam([loss.log_alpha], lr=alpha_lr)
        self.target_updater = SoftUpdate(loss, tau=tau)

    def forward(self, batch: TensorDictBase, *, update_actor: bool = True) -> TensorDictBase:
        """One critic step on ``batch`` ``[n]``, one actor and temperature step unless told otherwise.

        Returns:
            TensorDict of scalars, still on the device, under the names that a run logs.
        """
        loss_critic, critic = self.loss.qvalue_v2_loss(batch)
        metrics = {
            "sac/critic_loss": loss_critic,
            "critic/grad_norm": self._step(self.critic_optimiser, self._critic_params, loss_critic),
            "sac/td_error": critic["td_error"].mean(),
            "sac/q_mean": critic["q"].mean(),
            "sac/q_std": critic["q"].std(),
        }
        if update_actor:
            loss_actor, actor = self.loss.actor_loss(batch)
            metrics["sac/actor_loss"] = loss_actor
            metrics["actor/grad_norm"] = self._step(self.actor_optimiser, self._actor_params, loss_actor)
            metrics["actor/policy_entropy"] = -actor["log_prob"].mean()
            if self.alpha_optimiser is not None:
                loss_alpha = self.loss.alpha_loss(actor["log_prob"]).mean()
                metrics["sac/alpha_loss"] = loss_alpha
                self._step(self.alpha_optimiser, [self.loss.log_alpha], loss_alpha)
            metrics["sac/alpha"] = self.loss._alpha
        self.target_updater.step()
        return TensorDict({name: value.detach().clone() for name, value in metrics.items()})

    def _step(self, optimiser: torch.optim.Optimizer, parameters: list[Tensor], loss: Tensor) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        optimiser.step()
        return norm

    def optimiser_state(self) -> OptimiserState:
        """The optimisers as one checkpoint component."""
        return OptimiserState(
            {
                name: optimiser
                for name, optimiser in (
                    ("actor", self.actor_optimiser),
                    ("critic", self.critic_optimiser),
                    ("alpha", self.alpha_optimiser),
                )
                if optimiser is not None
            }
        )


class OptimiserState:
    """Several optimisers behind one ``state_dict`` / ``load_state_dict``."""

    def __init__(self, optimisers: dict[str, torch.optim.Optimizer]) -> None:
        self.optimisers = optimisers

    def state_dict(self) -> dict:
        return {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[name])
