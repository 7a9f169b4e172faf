"""What the algorithms with a learned latent policy share: its pace and its average."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import ClassVar

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from dsrl_torchrl.agents.agent import Agent, AgentConfig
from dsrl_torchrl.networks.latent_actor import LatentPolicy
from dsrl_torchrl.options import option

ACTOR = "actor"


class ActorConfig(AgentConfig):
    """Hyper-parameters of algorithms with a learned latent policy."""

    critic_only_updates: int = option(300, "first updates, which leave the actor alone", ge=0)
    actor_interval: int = option(1, "critic updates per actor update", ge=1)
    actor_lr: float = option(2e-4, "Adam's learning rate of the latent policy", gt=0)
    actor_average: float = option(
        0.99, "decay of the moving average (EMA) of the actor that a run keeps; 0: the last actor", ge=0, lt=1
    )


class ActorAgent(Agent):
    """An algorithm with a learned latent policy, which is trained at its own pace and averaged."""

    Config: ClassVar[type[ActorConfig]] = ActorConfig
    actor: TensorDictModuleBase
    averaged: Tensor
    kept_policy: LatentPolicy

    def parts(self, update: int) -> frozenset[str]:
        due = update >= self.config.critic_only_updates and update % self.config.actor_interval == 0
        return super().parts(update) | {ACTOR} if due else super().parts(update)

    def keep_average(self, actor: TensorDictModuleBase) -> LatentPolicy:
        """The policy of the actor's average over its updates (Eq. 16), or of the actor itself where none is asked for.

        Late in a run the critics' errors outweigh what is left to gain and the actor wanders; its average does not.
        Encoders of its own are averaged with it.
        """
        self.average = deepcopy(actor).requires_grad_(False) if self.config.actor_average else None
        encoder = self.actor_encoder
        if self.average is not None:
            averages = [*self.average.parameters()]
            if self.own_encoder is not None:
                encoder = deepcopy(encoder).requires_grad_(False)
                averages += encoder.parameters()
            self._averaging = averages, self.actor_parameters(actor)
        self.register_buffer("averaged", torch.zeros((), device=self.device))  # 1 once there is one to go on with
        return LatentPolicy(encoder, actor if self.average is None else self.average)

    @torch.no_grad()
    def move_average(self) -> None:
        """Called after every update of the actor; the first one starts the average."""
        if self.average is not None:
            # On the device: torch's AveragedModel asks the host for its count, which a CUDA graph cannot.
            weight = torch.where(self.averaged > 0, 1 - self.config.actor_average, 1.0)
            for average, new in zip(*self._averaging, strict=True):
                average.lerp_(new, weight)
            self.averaged.fill_(1.0)

    def actor_tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Actor and average, by file."""
        return {"actor": self.actor.state_dict(), "kept_actor": self.kept_policy.actor.state_dict()}

    def encoder_tensors(self) -> Mapping[str, Tensor]:
        tensors = super().encoder_tensors()
        if self.own_encoder is None:
            return tensors
        kept = self.kept_policy.encoder.state_dict()
        return {**tensors, **{f"kept_actor.{name}": value for name, value in kept.items()}}

    def load(self, folder: str | os.PathLike[str], components: Sequence[str] = ("actor", "critics")) -> None:
        super().load(folder, components)
        if "actor" in components:
            self.averaged.fill_(1.0)
