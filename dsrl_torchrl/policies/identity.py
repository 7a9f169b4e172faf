"""No policy at all: the noise is the executed chunk itself, so that the latent env's action is the robot's."""

from __future__ import annotations

from typing import Any, ClassVar

from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.policies.base_policy import BasePolicy

#: Where the ends of the actions' range lie in the learner's ±1. A squashed Gaussian has no density on its own bound,
#: and demonstrations have many actions on theirs (a gripper's, above all).
EDGE = 0.99


class IdentityPolicy(BasePolicy):
    """``a = clip(middle + half range · w / 0.99)``: the noise is the chunk, scaled to ±1.

    :class:`~dsrl_torchrl.latent_env.LatentActionEnv` around it, with ``action_magnitude=1``, is the env of raw action
    chunks: algorithms in action space run in the same loops, from the same data and resets as those that steer. Each
    chunk of the data has one noise, exactly (:meth:`encode_chunk`).

    Args:
        base: the base policy that is compared with. Entries, their statistics and the range of actions are its own.
        act_horizon: actions of a chunk, all of them executed.
    """

    dtype: ClassVar[None] = None  # type: ignore[assignment]  # the base policy's own is nothing to the chunk

    def __init__(self, base: BasePolicy, act_horizon: int) -> None:
        super().__init__(
            base.action_dim,
            act_horizon,
            in_keys=base.in_keys,
            obs_horizon=base.obs_horizon,
            control_mode=base.control_mode,
        )
        self.base = base
        self.take_after(base)

    def forward(self, *entries_and_noise: Any) -> Tensor:
        """Reads the noise alone: ``[*B, act_horizon, action_dim]`` -> the same shape, in env units."""
        return self.denormalise_action((entries_and_noise[-1] / EDGE).clamp(-1.0, 1.0))

    @property
    def features_dim(self) -> int | None:
        return self.base.features_dim

    def features(self, *entries: Any) -> Tensor:
        """The base policy's own, for learners that read them in place of images."""
        return self.base.features(*self.base._cast(*entries))

    def from_features(self, features: Tensor, noise: Tensor) -> Tensor:
        return self(noise)

    def encode_chunk(self, chunk: Tensor) -> Tensor:
        """The noise that decodes to ``[*B, act_horizon, action_dim]``, flat; actions out of range to its ends."""
        return EDGE * self.normalise_action(chunk).clamp(-1.0, 1.0).flatten(-2)

    def observation_statistics(self, key: NestedKey) -> tuple[Tensor, Tensor] | None:
        return self.base.observation_statistics(key)

    def content_hash(self) -> str | None:
        content = self.base.content_hash()
        return None if content is None else f"{content}-chunk"
