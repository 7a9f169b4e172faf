"""Shortcut models: the policy that knows its step size, its sampler of 1 to 8 steps and its behaviour-cloning loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.errors import UserError, positive_int
from dsrl_torchrl.policies.cloning_loss import BehaviourCloningLoss
from dsrl_torchrl.policies.generative import GenerativePolicy, time_like
from dsrl_torchrl.policies.networks import TIME_FEATURES, TimeEmbedding

SAMPLER_STEPS = (1, 2, 4, 8)
# One chunk in four learns self-consistency, the others the flow that it is bootstrapped from (Frans et al., 2024;
# ``bootstrap_every`` in the authors' code): a self-consistency target costs two more forward passes.
SELF_CONSISTENCY_EVERY = 4


class ShortcutPolicy(GenerativePolicy):
    """A flow whose network also reads the step size d, so that a few large steps land where many small ones would.

    Shortcut models (Frans et al., 2024, "One Step Diffusion via Shortcut Models"): ``s(x_t, t, d)`` is the average
    velocity from t to t + d, so ``x_{t + d} = x_t + d * s(x_t, t, d)`` from noise (t = 0) to the chunk (t = 1). One
    network and one training decode in 1, 2, 4 or 8 steps.

    d is on the dyadic grid 1, 1/2, 1/4, ... ``1 / max_steps``. The smallest step is the flow itself: what the paper
    calls d = 0 and trains by flow matching is here, as in the authors' code, the label ``1 / max_steps``.

    Args:
        sampler_steps: 1, 2, 4 or 8 network calls per chunk, at most ``max_steps``; unlike a flow's, few steps hardly
            narrow the spread over noise. 2 by default: about as close to the demonstrations as a flow in 4.
        max_steps: steps of the finest sampler, a power of two. The large steps imitate that sampler, not the exact
            flow; each doubling adds a level through which its errors are passed on.

    The other arguments are :class:`~dsrl_torchrl.policies.generative.GenerativePolicy`'s.
    """

    policy_type: ClassVar[str] = "shortcut"
    condition_dim: ClassVar[int] = TIME_FEATURES

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        pred_horizon: int,
        obs_horizon: int = 1,
        sampler_steps: int = 2,
        network: Mapping[str, Any] | None = None,
        control_mode: str = "",
        max_steps: int = 8,
        in_key: NestedKey = "observation",
        image_keys: Sequence[NestedKey] = (),
        image_shapes: Sequence[Sequence[int]] = (),
    ) -> None:
        if positive_int("max_steps", max_steps, at_least=2).bit_count() != 1:
            raise UserError(f"max_steps must be a power of two, got {max_steps}")
        if sampler_steps not in SAMPLER_STEPS or sampler_steps > max_steps:
            raise UserError(
                f"sampler_steps must be 1, 2, 4 or 8 and at most max_steps ({max_steps}), got {sampler_steps}"
            )
        super().__init__(
            observation_dim,
            action_dim,
            pred_horizon,
            obs_horizon,
            sampler_steps,
            network,
            control_mode,
            in_key,
            image_keys,
            image_shapes,
        )
        self.max_steps = max_steps
        self.step_embedding = TimeEmbedding()

    @property
    def config(self) -> dict[str, Any]:
        """Every constructor argument, defaults included, as plain JSON values."""
        return {**super().config, "max_steps": self.max_steps}

    def velocity(self, observation: Tensor, x: Tensor, t: Tensor, d: Tensor) -> Tensor:
        """``s(x_t, t, d)``: normalised observation ``[B, obs]``, x ``[B, H, A]``, t and d ``[B]`` -> ``[B, H, A]``.

        d is embedded like t, on a log scale from 0 (d = 1) to 1 (the smallest), where the levels are equally spaced.
        """
        level = -d.log2() / math.log2(self.max_steps)
        return self.network(torch.cat([observation, self.step_embedding(level)], -1), x, t)

    def cloning_loss(self) -> ShortcutBCLoss:
        """:class:`ShortcutBCLoss` of this policy."""
        return ShortcutBCLoss(self)

    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """``x_{t + d} = x_t + d * s(x_t, t, d)`` with ``d = 1 / sampler_steps``, then clipped to [-1, 1]."""
        x, d = noise, 1 / self.sampler_steps
        for i in range(self.sampler_steps):
            x = x + d * self.velocity(observation, x, time_like(x, i * d), time_like(x, d))
        return x.clamp(-1, 1)

    @torch.no_grad()
    def two_step_velocity(self, observation: Tensor, x_t: Tensor, t: Tensor, d: Tensor) -> Tensor:
        """``(s(x_t, t, d) + s(x_{t + d}, t + d, d)) / 2``, the target of one step of 2d; shapes of :meth:`velocity`.

        The teacher is the network itself. The authors' code takes its moving average (``bootstrap_ema``), which here
        belongs to the training loop; trained with such a teacher, one-step chunks were no closer to the data.
        """
        first = self.velocity(observation, x_t, t, d)
        second = self.velocity(observation, x_t + d[:, None, None] * first, t + d, d)
        return (first + second) / 2

    def squared_error(self, observation: Tensor, chunk: Tensor) -> Tensor:
        """``(s(x_t, t, d) - target)²`` at noise ``x_0 ~ N(0, I)`` and t uniform on the multiples of d: ``[B, H, A]``.

        The first quarter of the batch, which must be in random order, learns self-consistency: d uniform over the steps
        above the smallest, target :meth:`two_step_velocity`. The rest learns the flow: d the smallest step, target
        ``x_1 - x_0``. The sampler asks for no t that is not a multiple of its d, so neither does the loss.

        Raises:
            UserError: fewer than four chunks, of which none would learn self-consistency.
        """
        n = len(chunk) // SELF_CONSISTENCY_EVERY
        if n == 0:
            raise UserError(
                f"a shortcut loss needs {SELF_CONSISTENCY_EVERY} chunks or more in a batch, got {len(chunk)}"
            )
        x_1, x_0 = chunk, torch.randn_like(chunk)
        d = time_like(chunk, 1 / self.max_steps)
        d[:n] = 0.5 ** torch.randint(self.max_steps.bit_length() - 1, (n,), device=chunk.device)
        t = (torch.rand_like(d) / d).floor() * d
        time = t[:, None, None]
        x_t = (1 - time) * x_0 + time * x_1
        target = x_1 - x_0
        target[:n] = self.two_step_velocity(observation[:n], x_t[:n], t[:n], d[:n] / 2)
        return (self.velocity(observation, x_t, t, d) - target).square()


class ShortcutBCLoss(BehaviourCloningLoss):
    """Flow matching and self-consistency on expert chunks; out key ``loss_shortcut_bc``."""

    loss_key = "loss_shortcut_bc"
    policy_class = ShortcutPolicy
