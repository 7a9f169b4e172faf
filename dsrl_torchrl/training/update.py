"""One gradient update of the latent policy: by SAC on its noise, or by noise aliasing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate

from dsrl_torchrl.objectives.q_action import ActionValueLoss
from dsrl_torchrl.objectives.aw_mle import AdvantageWeightedMLELoss
from dsrl_torchrl.objectives.noise_aliasing import NoiseAliasingLoss
from dsrl_torchrl.objectives.sac import LatentSACLoss


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam's learning rates, the targets' Polyak rate and the clipping of gradients."""

    actor_lr: float = 2e-4
    critic_lr: float = 5e-4
    alpha_lr: float = 3e-4
    tau: float = 0.01  # ``θ_targ <- τ θ + (1 - τ) θ_targ``
    max_grad_norm: float | None = None  # per network; ``None`` only measures it


class LatentUpdate(nn.Module):
    """``update(batch) -> metrics``: losses, backward, optimiser steps, target update, and no host synchronisation.

    The critics' step is the subclass's. The actor's signal is ``Q^W`` = ``sac.qvalue_network`` in every case: SAC's
    actor and temperature losses, or AW-MLE where that is given.

    Args:
        sac: holds actor, ``Q^W`` and temperature; its parameters are trained in place.
        config: rates.
        aw_mle: replaces SAC's actor loss; the temperature is then left alone.
        actor_batch_size: states of a batch, evenly spaced, that ``aw_mle`` reads; ``None`` for all.
    """

    target_updater: SoftUpdate

    def __init__(
        self,
        sac: LatentSACLoss,
        config: OptimiserConfig,
        aw_mle: AdvantageWeightedMLELoss | None = None,
        actor_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.sac = sac
        self.aw_mle = aw_mle
        self.actor_batch_size = actor_batch_size
        self.max_grad_norm = config.max_grad_norm
        self._actor_params = _trainable(sac.actor_network_params)
        self._noise_value_params = _trainable(sac.qvalue_network_params)
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "actor": torch.optim.Adam(self._actor_params, lr=config.actor_lr, fused=True),
            "critic": torch.optim.Adam(self._noise_value_params, lr=config.critic_lr, fused=True),
        }
        if not sac.fixed_alpha:
            self.optimisers["alpha"] = torch.optim.Adam([sac.log_alpha], lr=config.alpha_lr, fused=True)

    def prepare(self, batches: TensorDictBase) -> TensorDictBase:
        """Does at once, in place, what ``[k, n]`` transitions of k coming updates can share; nothing for SAC."""
        return batches

    def forward(self, batch: TensorDictBase, *, update_actor: bool = True, distil: bool = True) -> TensorDict:
        """One critic step on ``batch`` ``[n]``, one actor and temperature step unless told otherwise.

        Args:
            batch: macro transitions.
            update_actor: train the latent policy, too.
            distil: train ``Q^W``, too, where it is distilled from ``Q^A``.

        Returns:
            TensorDict of scalars, still on the device, under the names that a run logs.
        """
        metrics = self._critic_step(batch, distil)
        if update_actor:
            metrics |= self._actor_step(batch)
        self.target_updater.step()
        return TensorDict({name: value.detach() for name, value in metrics.items()})

    def _critic_step(self, batch: TensorDictBase, distil: bool) -> dict[str, Tensor]:
        """Trains ``Q^W``, and ``Q^A`` where there is one; the subclass's."""
        raise NotImplementedError

    def _actor_step(self, batch: TensorDictBase) -> dict[str, Tensor]:
        if self.aw_mle is not None:
            out = self.aw_mle(self._actor_states(batch))
            return {
                "aw_mle/loss": out["loss_aw_mle"],
                "aw_mle/effective_candidates": out["effective_candidates"].mean(),
                "aw_mle/advantage": out["advantage"].mean(),
                "actor/grad_norm": self._step("actor", self._actor_params, out["loss_aw_mle"]),
            }
        loss_actor, actor = self.sac.actor_loss(batch)
        metrics = {
            "sac/actor_loss": loss_actor,
            "actor/grad_norm": self._step("actor", self._actor_params, loss_actor),
            "actor/policy_entropy": -actor["log_prob"].mean(),
            "actor/q_mean": actor["q"].mean(),
        }
        if "alpha" in self.optimisers:
            loss_alpha = self.sac.alpha_loss(actor["log_prob"]).mean()
            metrics["sac/alpha_loss"] = loss_alpha
            self._differentiate("alpha", loss_alpha)
            self.optimisers["alpha"].step()
        return metrics | {"sac/alpha": self.sac._alpha}

    def _actor_states(self, batch: TensorDictBase) -> TensorDictBase:
        """The states that the actor imitates on: online and offline ones in the batch's proportion."""
        count, wanted = len(batch), self.actor_batch_size
        if wanted is None or wanted >= count:
            return batch
        return batch[torch.arange(wanted, device=self.sac.log_alpha.device) * count // wanted]

    def _step(self, name: str, parameters: list[Tensor], loss: Tensor) -> Tensor:
        self._differentiate(name, loss)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        self.optimisers[name].step()
        return norm

    def _differentiate(self, name: str, loss: Tensor) -> None:
        self.optimisers[name].zero_grad(set_to_none=True)
        loss.backward()

    def optimiser_state(self) -> OptimiserState:
        """The optimisers as one checkpoint component."""
        return OptimiserState(self.optimisers)


class SACUpdate(LatentUpdate):
    """DSRL-SAC: ``Q^W`` by TD on transitions whose noise is known (SPEC §2)."""

    def __init__(
        self,
        sac: LatentSACLoss,
        config: OptimiserConfig,
        aw_mle: AdvantageWeightedMLELoss | None = None,
        actor_batch_size: int | None = None,
    ) -> None:
        super().__init__(sac, config, aw_mle, actor_batch_size)
        self.target_updater = SoftUpdate(sac, tau=config.tau)

    def _critic_step(self, batch: TensorDictBase, distil: bool) -> dict[str, Tensor]:
        loss, critic = self.sac.qvalue_v2_loss(batch)
        return {
            "sac/critic_loss": loss,
            "critic/grad_norm": self._step("critic", self._noise_value_params, loss),
            "sac/td_error": critic["td_error"].mean(),
            "sac/q_mean": critic["q"].mean(),
            "sac/q_std": critic["q"].std(),
        }


class NAUpdate(LatentUpdate):
    """DSRL-NA: ``Q^A`` by TD on executed chunks, distilled into ``Q^W`` (SPEC §3)."""

    def __init__(
        self,
        sac: LatentSACLoss,
        action_value: ActionValueLoss,
        noise_aliasing: NoiseAliasingLoss,
        config: OptimiserConfig,
        aw_mle: AdvantageWeightedMLELoss | None = None,
        actor_batch_size: int | None = None,
    ) -> None:
        super().__init__(sac, config, aw_mle, actor_batch_size)
        self.action_value = action_value
        self.noise_aliasing = noise_aliasing
        self._action_value_params = _trainable(action_value.action_value_network_params)
        self.optimisers["action_value"] = torch.optim.Adam(self._action_value_params, lr=config.critic_lr, fused=True)
        self.target_updater = SoftUpdate(action_value, tau=config.tau)

    def prepare(self, batches: TensorDictBase) -> TensorDictBase:
        """The chunks of the TD targets, in one decode."""
        return self.action_value.draw_next_chunks(batches) if len(batches) > 1 else batches

    def _critic_step(self, batch: TensorDictBase, distil: bool) -> dict[str, Tensor]:
        td = self.action_value(batch)
        metrics = {
            "sac/critic_loss": td["loss_action_value"],
            "critic/grad_norm": self._step("action_value", self._action_value_params, td["loss_action_value"]),
            "sac/td_error": td["td_error"].mean(),
            "sac/q_mean": td["q_action"].mean(),
            "sac/q_std": td["q_action"].std(),
        }
        if not distil:
            return metrics
        alias = self.noise_aliasing(batch)
        return metrics | {
            "noise_aliasing/loss": alias["loss_noise_aliasing"],
            "noise_aliasing/grad_norm": self._step("critic", self._noise_value_params, alias["loss_noise_aliasing"]),
            "noise_aliasing/q_mean": alias["q_noise"].mean(),
        }


def _trainable(params: TensorDictParams) -> list[Tensor]:
    return [p for p in params.values(True, True) if p.requires_grad]


class OptimiserState:
    """Several optimisers behind one ``state_dict`` / ``load_state_dict``."""

    def __init__(self, optimisers: dict[str, torch.optim.Optimizer]) -> None:
        self.optimisers = optimisers

    def state_dict(self) -> dict:
        return {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state[name])
