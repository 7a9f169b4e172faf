"""What an agent does with encoders: the critics', a slow copy for targets, the actor's own; augmented in updates."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.networks.augmentation import augment
from dsrl_torchrl.networks.config import NetworkConfig, make_encoder
from dsrl_torchrl.networks.encoders import ACTOR_FEATURES_KEY, FEATURES_KEY, ObservationEncoder
from dsrl_torchrl.objectives.polyak import PolyakAverage, PolyakUpdate

#: What the critics' encoder saw of s, for the actor's own.
SEEN_KEY = "seen_by_encoders"


class EncodingAgent(nn.Module):
    """Features for critics and actor, from encoders that stand outside of the losses.

    TorchRL's losses draw an encoder inside of a critic anew for each member of an ensemble; outside it is one, and an
    image is encoded once for all members.

    Attributes:
        encoder: of the critics. The loss that learns from rewards trains it where it has parameters.
        target_encoder: a slowly moving copy for the features of s', as the target critics are; a fixed encoder is its
            own.
        own_encoder: of the actor, trained by the actor's loss; ``None``: it reads the critics' features, detached.
        actor_can_encode: there is an actor that can have one (``networks.actor_encoder=own``).
    """

    actor_can_encode: ClassVar[bool] = False
    config: Any
    networks: NetworkConfig
    target_updater: PolyakUpdate  # of an algorithm with target networks

    def make_encoders(self, env: LatentActionEnv, data: TensorDictBase | None) -> None:
        """Makes them by ``networks``; see :func:`~dsrl_torchrl.networks.config.make_encoder`."""
        check_actor_encoder(type(self), self.networks)
        self.encoder = make_encoder(env, self.networks, data)
        self.target_encoder = deepcopy(self.encoder).requires_grad_(False) if self.encoder.trainable else self.encoder
        pair = self.target_encoder.parameters(), self.encoder.parameters()
        self._target_average = PolyakAverage(*pair, self.config.tau)
        asked = self.networks.actor_encoder == "own"
        own = asked and self.encoder.trainable  # a fixed one has nothing to learn from the actor
        self.own_encoder = make_encoder(env, self.networks, data, ACTOR_FEATURES_KEY) if own else None
        self.feature_keys: list[NestedKey] = [FEATURES_KEY, ACTOR_FEATURES_KEY] if own else [FEATURES_KEY]

    @property
    def actor_encoder(self) -> ObservationEncoder:
        """What the actor reads comes from here."""
        return self.encoder if self.own_encoder is None else self.own_encoder

    def actor_parameters(self, actor: nn.Module) -> list[Tensor]:
        """What the actor's loss trains."""
        return [*actor.parameters(), *([] if self.own_encoder is None else self.own_encoder.parameters())]

    def encode(self, batch: TensorDictBase, actor: bool = False) -> TensorDictBase:
        """Adds the features of s, with gradient where an encoder is trained, and of s', unless ``prepare`` did.

        Trained encoders see augmented images where the networks ask for it, s and s' by draws of their own. The entries
        themselves stay: the base policy decodes from them.

        Args:
            batch: macro transitions ``[n]``.
            actor: the actor is trained in this update, too: :meth:`detached` adds its own encoder's features of s.
        """
        batch = batch.copy()
        there = all(batch.get(key, None) is not None for key in (FEATURES_KEY, ("next", FEATURES_KEY)))
        if not self.encoder.trainable:
            return batch if there else self.encode_next(self.encoder(batch))
        seen = self._augmented(batch)
        if actor and self.own_encoder is not None:
            batch.set(SEEN_KEY, seen.copy())
        seen = self.encoder(seen).set("next", self._augmented(batch.get("next")))
        self.encode_next(seen)
        read = seen.select(*self.feature_keys, *(("next", key) for key in self.feature_keys), strict=False)
        return batch.update(read)

    def _augmented(self, observations: TensorDictBase) -> TensorDictBase:
        read = observations.select(*self.encoder.in_keys)
        shift, jitter = self.networks.random_shift, self.networks.color_jitter
        return augment(read, shift, jitter) if shift or jitter else read

    @torch.no_grad()
    def encode_next(self, batch: TensorDictBase) -> TensorDictBase:
        """Adds the features of s', in place, without gradient; the actor's own have no slow copy, as the actor."""
        self.target_encoder(batch.get("next"))
        if self.own_encoder is not None:
            self.own_encoder(batch.get("next"))
        return batch

    def detached(self, batch: TensorDictBase) -> TensorDictBase:
        """``batch`` with features that train no encoder of the critics, and those that train the actor's own.

        The latter come this late as a compiled update has one gradient for all that was encoded together, which the
        critics' has used up by then.
        """
        if not self.encoder.trainable:
            return batch
        batch = batch.copy().set(FEATURES_KEY, batch.get(FEATURES_KEY).detach())
        if self.own_encoder is not None and (seen := batch.get(SEEN_KEY, None)) is not None:
            batch = batch.exclude(SEEN_KEY)
            batch.set(ACTOR_FEATURES_KEY, self.own_encoder(seen.copy()).get(ACTOR_FEATURES_KEY))
        return batch

    def move_targets(self) -> None:
        """Polyak averaging (Eq. 11), the encoder's with that of the target networks."""
        self.target_updater.step()
        self.move_target_encoder()

    def move_target_encoder(self) -> None:
        """Polyak averaging (Eq. 11)."""
        if self.encoder.trainable:
            self._target_average.step()

    def encoder_tensors(self) -> Mapping[str, Tensor]:
        """What is saved of them, by name."""
        tensors = dict(self.encoder.state_dict())
        if self.encoder.trainable:
            tensors |= {f"target.{name}": value for name, value in self.target_encoder.state_dict().items()}
        if self.own_encoder is not None:
            tensors |= {f"actor.{name}": value for name, value in self.own_encoder.state_dict().items()}
        return tensors


def check_actor_encoder(agent: type[EncodingAgent], networks: NetworkConfig) -> None:
    """Raises :class:`UserError` for an actor that is to have an encoder of its own and cannot."""
    if networks.actor_encoder == "own" and not agent.actor_can_encode:
        raise UserError(f"networks.actor_encoder=own is not for {agent.__name__}: choose shared")
