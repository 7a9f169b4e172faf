"""Noise schedules of other projects, and DDIM with η = 0 over them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl_torchrl.errors import UserError, positive_int
from dsrl_torchrl.policies.adapters.history_encoder import Exact
from dsrl_torchrl.policies.diffusion import MAX_BETA, check_sampler_steps, cosine_betas

#: Network calls per chunk where a checkpoint names none that are deterministic (Diffusion Policy's real-robot runs: 10
#: to 16 DDIM steps of 100).
SAMPLER_STEPS = 10
BETA_START, BETA_END = 0.0001, 0.02  # diffusers' defaults
MAX_TRAIN_STEPS = 100_000  # a hundred times what anybody trains with: a damaged number must not fill the memory


def dppo_cosine_betas(train_steps: int) -> list[float]:
    """DPPO's ``cosine_beta_schedule``: the cosine is taken at ``linspace(0, T + 1, T + 1)``, not at ``0, ..., T``."""
    steps = train_steps + 1
    signal = np.cos((np.linspace(0, steps, steps) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.clip(1 - signal[1:] / signal[:-1], 0, MAX_BETA).tolist()


def betas(schedule: str, train_steps: int, start: float = BETA_START, end: float = BETA_END) -> Tensor:
    """``β_t`` ``[train_steps]`` float32, by diffusers' names or ``dppo_cosine``.

    Raises:
        UserError: an unknown schedule, or too many steps.
    """
    if positive_int("the number of diffusion steps", train_steps) > MAX_TRAIN_STEPS:
        raise UserError(f"the number of diffusion steps should be at most {MAX_TRAIN_STEPS}, got {train_steps}")
    if schedule == "squaredcos_cap_v2":
        return torch.tensor(cosine_betas(train_steps))
    if schedule == "dppo_cosine":
        return torch.tensor(dppo_cosine_betas(train_steps))
    if schedule == "linear":
        return torch.linspace(start, end, train_steps)
    if schedule == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, train_steps) ** 2
    known = "squaredcos_cap_v2, linear, scaled_linear, dppo_cosine"
    raise UserError(f"the noise schedule should be one of {known}, got {schedule!r}")


class DDIM(Exact):
    """DDIM with η = 0 (Song et al., 2021), which is deterministic in the initial noise.

    Steps are spaced as in diffusers' ``leading``. Computed in float32 from ``β`` on, as their code does: the last ᾱ of
    a cosine schedule carries the rounding of ``1 - 0.999``.

    Args:
        betas: ``[T]``.
        sampler_steps: network calls per chunk.
        prediction: what the network predicts: ``epsilon`` or ``sample``.
        clip: bound of ``x̂_0`` in every step; ``None`` does not clip.
        recompute_epsilon: from the clipped ``x̂_0`` (DPPO), instead of keeping the predicted ε (diffusers' default).
        offset: added to every timestep (diffusers' ``steps_offset``).
        last_alpha_bar_is_one: diffusers' ``set_alpha_to_one``; otherwise the last step goes to ``ᾱ_0``.

    Raises:
        UserError: too many steps, or such that the first one is not in noise; another prediction; numbers out of range.
    """

    alpha_bars: Tensor  # (T,)

    def __init__(
        self,
        betas: Tensor,
        sampler_steps: int,
        *,
        prediction: str = "epsilon",
        clip: float | None = 1.0,
        recompute_epsilon: bool = False,
        offset: int = 0,
        last_alpha_bar_is_one: bool = True,
    ) -> None:
        super().__init__()
        train_steps = len(betas)
        check_sampler_steps(positive_int("sampler_steps", sampler_steps), train_steps)
        if prediction not in ("epsilon", "sample"):
            raise UserError(f"the network should predict epsilon or sample, got {prediction!r}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise UserError(f"the noise schedule should have all β between 0 and 1, got {betas[0]:g} to {betas[-1]:g}")
        if clip is not None and (isinstance(clip, bool) or not clip > 0):
            raise UserError(f"the bound of clipping should be a positive number, got {clip!r}")
        positive_int("steps_offset", offset, at_least=0)
        self.config: dict[str, Any] = {
            "sampler_steps": sampler_steps,
            "prediction": prediction,
            "clip": clip,
            "recompute_epsilon": recompute_epsilon,
            "offset": offset,
            "last_alpha_bar_is_one": last_alpha_bar_is_one,
        }
        self.prediction, self.clip, self.recompute_epsilon = prediction, clip, recompute_epsilon
        self.last_alpha_bar_is_one = last_alpha_bar_is_one
        self.stride = train_steps // sampler_steps
        self.timesteps = [i * self.stride + offset for i in reversed(range(sampler_steps))]
        if self.timesteps[0] >= train_steps:
            raise UserError(
                f"steps_offset={offset} puts the first of {sampler_steps} steps behind the last of {train_steps}"
            )
        self.register_buffer("alpha_bars", torch.cumprod(1 - betas.float(), 0))

    def forward(self, predict: Callable[[Tensor, int], Tensor], noise: Tensor) -> Tensor:
        """Noise ``[B, H, A]`` -> chunk ``[B, H, A]``, by ``predict(x [B, H, A], timestep) -> [B, H, A]``."""
        x = noise
        for t in self.timesteps:
            alpha_bar, next_alpha_bar = self.alpha_bars[t], self._alpha_bar(t - self.stride)
            signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            predicted = predict(x, t)
            if self.prediction == "epsilon":
                epsilon, x_0 = predicted, (x - spread * predicted) / signal
            else:
                epsilon, x_0 = (x - signal * predicted) / spread, predicted
            if self.clip is not None:
                x_0 = x_0.clamp(-self.clip, self.clip)
                if self.recompute_epsilon:
                    epsilon = (x - signal * x_0) / spread
            x = next_alpha_bar.sqrt() * x_0 + (1 - next_alpha_bar).sqrt() * epsilon
        return x

    def _alpha_bar(self, t: int) -> Tensor:
        if t >= 0:
            return self.alpha_bars[t]
        return torch.ones_like(self.alpha_bars[0]) if self.last_alpha_bar_is_one else self.alpha_bars[0]


def clip_bound(clip_sample: object, bound: float = 1.0) -> float | None:
    """What diffusers' ``clip_sample`` and ``clip_sample_range`` come to; a text would count as true.

    Raises:
        UserError: ``clip_sample`` is neither true nor false.
    """
    if not isinstance(clip_sample, bool):
        raise UserError(f"clip_sample should be true or false, got {clip_sample!r}")
    return bound if clip_sample else None


def deterministic_steps(scheduler: str, own_steps: int, train_steps: int, asked: int | None) -> int:
    """How many DDIM steps stand for the scheduler that a checkpoint names.

    Args:
        scheduler: ``DDIM`` keeps its ``own_steps``; ``DDPM`` draws fresh noise at every step and cannot be steered, so
            it becomes :data:`SAMPLER_STEPS` DDIM steps, and a warning says so.
        own_steps: the number of its inference steps.
        train_steps: of its schedule.
        asked: the user's choice, which wins.

    Raises:
        UserError: another scheduler.
    """
    if scheduler not in ("DDPM", "DDIM"):
        raise UserError(f"the noise scheduler should be DDPM or DDIM, got {scheduler!r}: no other sampler is read")
    if asked is not None:
        return positive_int("sampler_steps", asked)
    if scheduler == "DDIM":
        return own_steps
    steps = min(SAMPLER_STEPS, train_steps)
    warnings.warn(
        f"DDPM of {own_steps} steps draws fresh noise in each and cannot be steered: decoded by DDIM with eta=0 in "
        f"{steps} steps (sampler_steps=)",
        stacklevel=4,  # whoever calls the loader
    )
    return steps
