"""Diffusion: the policy, its deterministic DDIM sampler and its behaviour-cloning loss."""

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

MAX_BETA = 0.999  # keeps the last step of the cosine schedule invertible (Nichol and Dhariwal, 2021, section 3.2)


def cosine_betas(train_steps: int) -> list[float]:
    """``β_t`` of the cosine schedule (Nichol and Dhariwal, 2021), diffusers' ``squaredcos_cap_v2``."""

    def signal(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return [min(1 - signal((i + 1) / train_steps) / signal(i / train_steps), MAX_BETA) for i in range(train_steps)]


def cosine_alpha_bars(train_steps: int) -> Tensor:
    """``ᾱ_t = Π_{s <= t} (1 - β_s)`` of :func:`cosine_betas`: ``[train_steps]``."""
    return torch.cumprod(1 - torch.tensor(cosine_betas(train_steps), dtype=torch.float64), 0).float()


def check_sampler_steps(sampler_steps: int, train_steps: int) -> None:
    """Raises :class:`UserError` unless DDIM steps, spaced from step 0 on, are few enough and start in noise."""
    if sampler_steps > train_steps:
        raise UserError(f"sampler_steps must be at most train_steps ({train_steps}), got {sampler_steps}")
    if not _starts_in_noise(sampler_steps, train_steps):
        good = [n for n in range(1, train_steps + 1) if _starts_in_noise(n, train_steps)]
        nearest = min(good, key=lambda n: abs(n - sampler_steps))
        raise UserError(
            f"sampler_steps={sampler_steps} would start in the middle of the {train_steps} diffusion steps, where "
            f"a chunk is no longer noise: use {nearest}, or another divisor of {train_steps} from 4 on"
        )


def _starts_in_noise(sampler_steps: int, train_steps: int) -> bool:
    first = (sampler_steps - 1) * (train_steps // sampler_steps)
    return sampler_steps == train_steps or 4 * (first + 1) >= 3 * train_steps  # ᾱ_t is of t + 1 steps


class DiffusionPolicy(GenerativePolicy):
    """A DDPM trained to predict the noise, decoded by DDIM with η = 0, which is deterministic in the initial noise.

    Diffusion Policy (Chi et al., RSS 2023) over state observations. The ancestral DDPM sampler draws fresh noise at
    every step and cannot be steered; DDIM (Song et al., 2021) samples the same weights without it.

    Args:
        train_steps: number of diffusion steps of the training schedule.
        sampler_steps: number of DDIM steps, at most ``train_steps``, and such that the first one starts in the last
            quarter of the schedule: a divisor of ``train_steps`` from 4 on always does.

    The other arguments are :class:`~dsrl_torchrl.policies.generative.GenerativePolicy`'s.
    """

    policy_type: ClassVar[str] = "diffusion"
    alpha_bars: Tensor  # (train_steps,)

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        pred_horizon: int,
        obs_horizon: int = 1,
        sampler_steps: int = 10,
        network: Mapping[str, Any] | None = None,
        control_mode: str = "",
        train_steps: int = 100,
        in_key: NestedKey = "observation",
        image_keys: Sequence[NestedKey] = (),
        image_shapes: Sequence[Sequence[int]] = (),
    ) -> None:
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
        self.train_steps = positive_int("train_steps", train_steps)
        check_sampler_steps(sampler_steps, train_steps)
        self.register_buffer("alpha_bars", cosine_alpha_bars(train_steps))

    @property
    def config(self) -> dict[str, Any]:
        """Every constructor argument, defaults included, as plain JSON values."""
        return {**super().config, "train_steps": self.train_steps}

    def cloning_loss(self) -> DiffusionBCLoss:
        """:class:`DiffusionBCLoss` of this policy."""
        return DiffusionBCLoss(self)

    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """DDIM with η = 0: ``x_{t'} = √ᾱ_t' x̂_0 + √(1 - ᾱ_t') ε(s, x_t, t)``, with ``x̂_0`` clipped to [-1, 1].

        Steps are spaced as in diffusers' default (``leading``, last ᾱ = 1).
        """
        stride = self.train_steps // self.sampler_steps
        one = torch.ones_like(self.alpha_bars[0])
        x = noise
        for i in reversed(range(self.sampler_steps)):
            t = i * stride
            alpha_bar, next_alpha_bar = self.alpha_bars[t], self.alpha_bars[t - stride] if i else one
            epsilon = self.network(observation, x, time_like(x, t / self.train_steps))
            x_0 = ((x - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()).clamp(-1, 1)
            x = next_alpha_bar.sqrt() * x_0 + (1 - next_alpha_bar).sqrt() * epsilon
        return x

    def squared_error(self, observation: Tensor, chunk: Tensor) -> Tensor:
        """``(ε̂(s, √ᾱ_t x_0 + √(1 - ᾱ_t) ε, t) - ε)²`` with ``ε ~ N(0, I)``, t uniform: ``[B, H, A]``."""
        epsilon = torch.randn_like(chunk)
        t = torch.randint(self.train_steps, (chunk.shape[0],), device=chunk.device)
        alpha_bar = self.alpha_bars[t][:, None, None]
        x_t = alpha_bar.sqrt() * chunk + (1 - alpha_bar).sqrt() * epsilon
        return (self.network(observation, x_t, t / self.train_steps) - epsilon).square()


class DiffusionBCLoss(BehaviourCloningLoss):
    """Denoising score matching on expert chunks; out key ``loss_diffusion_bc``."""

    loss_key = "loss_diffusion_bc"
    policy_class = DiffusionPolicy
