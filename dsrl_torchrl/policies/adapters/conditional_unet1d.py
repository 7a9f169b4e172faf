"""Diffusion Policy's ``ConditionalUnet1D``, which its descendants share: the structure, and its sizes from weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsrl_torchrl.errors import UserError, positive_int

ACTIVATIONS = {"Mish": nn.Mish, "ReLU": nn.ReLU}
MAX_PERIOD = 10_000.0  # of the sinusoids of the diffusion step (Vaswani et al., 2017)


def step_features(t: int, size: int, like: Tensor) -> Tensor:
    """Sines and cosines of a diffusion step, ``[size]``, in dtype and on the device of ``like``."""
    half = size // 2
    frequencies = torch.exp(torch.arange(half, device=like.device) * -(math.log(MAX_PERIOD) / (half - 1)))
    angles = t * frequencies
    return torch.cat([angles.sin(), angles.cos()]).to(like.dtype)


@dataclass(frozen=True)
class UnetSizes:
    """What the weights of a U-Net say of its structure; the number of norm groups is not in them."""

    action_dim: int
    condition_dim: int  # without the features of the step
    channels: tuple[int, ...]
    kernel_size: int
    step_dim: int
    film_scale: bool  # FiLM scales and shifts, or only shifts
    film_layers: int  # of the FiLM encoder: 1, or 3 in DPPO
    norm: bool

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], where: str) -> UnetSizes:
        """Of tensors in the layout of :class:`ConditionalUnet1D`.

        Raises:
            UserError: they are of another network.
        """
        levels = sorted({int(m[1]) for name in tensors if (m := re.match(r"down_modules\.(\d+)\.0\.", name))})
        try:
            first = tensors["down_modules.0.0.blocks.0.block.0.weight"]
            step_dim = tensors["diffusion_step_encoder.1.weight"].shape[1]
            channels = tuple(tensors[f"down_modules.{i}.0.blocks.0.block.0.weight"].shape[0] for i in levels)
            film = {
                name: t
                for name, t in tensors.items()
                if re.fullmatch(r"mid_modules\.0\.cond_encoder\.\d\.weight", name)
            }
            film_in, film_out = (film[name] for name in (min(film), max(film)))
        except (KeyError, ValueError):
            kind = (
                "a transformer"
                if any("transformer" in n or "decoder" in n or "attn" in n for n in tensors)
                else "another"
            )
            shown = ", ".join(sorted(tensors)[:3]) or "nothing"
            raise UserError(
                f"{where} should hold Diffusion Policy's 1D U-Net (down_modules.*), but its network is {kind}: it has "
                f"{shown}, ...; write a BasePolicy for it (docs/your-own-policy.md)"
            ) from None
        return cls(
            action_dim=first.shape[1],
            condition_dim=film_in.shape[1] - step_dim,
            channels=channels,
            kernel_size=first.shape[2],
            step_dim=step_dim,
            film_scale=film_out.shape[0] == 2 * channels[-1],
            film_layers=len(film),
            norm="down_modules.0.0.blocks.0.block.1.weight" in tensors,
        )


class ConditionalUnet1D(nn.Module):
    """A convolutional U-Net over the chunk's steps, conditioned by FiLM (Chi et al., RSS 2023, section III-A).

    Names of parameters are those of real-stanford/diffusion_policy.

    Args:
        sizes: see :class:`UnetSizes`.
        groups: of the group norms.
        final_groups: of the last one: 8 whatever ``groups``, everywhere but in DPPO.
        activation: ``Mish`` or ``ReLU`` (DPPO).
        eps: of the group norms.
    """

    def __init__(
        self, sizes: UnetSizes, *, groups: int = 8, final_groups: int = 8, activation: str = "Mish", eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.sizes = sizes
        act = ACTIVATIONS[activation]
        pairs = [*((width, groups) for width in sizes.channels), (sizes.channels[0], final_groups)]
        for width, number in pairs if sizes.norm else []:
            if width % positive_int("n_groups", number):
                raise UserError(f"a U-Net of {width} channels cannot be normalised in {number} groups: set n_groups")

        def conv(into: int, out: int, groups: int = groups) -> nn.Module:
            return _ConvBlock(into, out, sizes.kernel_size, groups if sizes.norm else None, act, eps)

        def block(into: int, out: int) -> _FiLMBlock:
            film = _film(sizes, out, act)
            return _FiLMBlock(conv(into, out), conv(out, out), film, into, out, sizes.film_scale)

        step, channels = sizes.step_dim, sizes.channels
        self.diffusion_step_encoder = nn.ModuleDict({"1": nn.Linear(step, 4 * step), "3": nn.Linear(4 * step, step)})
        levels = list(zip((sizes.action_dim, *channels[:-1]), channels, strict=True))
        self.down_modules, self.up_modules = nn.ModuleList(), nn.ModuleList()
        for i, (into, out) in enumerate(levels):
            last = i + 1 == len(levels)
            down = nn.Identity() if last else _Resampled(nn.Conv1d(out, out, 3, 2, 1))
            self.down_modules.append(nn.ModuleList([block(into, out), block(out, out), down]))
        self.mid_modules = nn.ModuleList([block(channels[-1], channels[-1]) for _ in range(2)])
        for out, into in reversed(levels[1:]):
            up = _Resampled(nn.ConvTranspose1d(out, out, 4, 2, 1))
            self.up_modules.append(nn.ModuleList([block(2 * into, out), block(out, out), up]))
        self.final_conv = nn.Sequential(
            conv(channels[0], channels[0], final_groups), nn.Conv1d(channels[0], sizes.action_dim, 1)
        )

    def check_horizon(self, horizon: int) -> None:
        """Raises :class:`UserError` unless a chunk of ``horizon`` steps can be halved between all levels."""
        levels = len(self.sizes.channels)
        factor = 2 ** (levels - 1)
        if positive_int("pred_horizon", horizon) % factor:
            raise UserError(
                f"pred_horizon should be a multiple of {factor} for a U-Net of {levels} levels, got {horizon}"
            )

    def forward(self, x: Tensor, t: int, condition: Tensor) -> Tensor:
        """``[B, H, A]``, a diffusion step, ``[B, condition_dim]`` -> ``[B, H, A]``."""
        hidden, out = self.diffusion_step_encoder["1"], self.diffusion_step_encoder["3"]
        step = out(nn.functional.mish(hidden(step_features(t, self.sizes.step_dim, x))))
        condition = torch.cat([step.expand(len(x), -1), condition], -1)
        h = x.transpose(1, 2)  # (B, A, H)
        skips = []
        for level in self.down_modules:
            first, second, down = _parts(level)
            h = second(first(h, condition), condition)
            skips.append(h)
            h = down(h)
        for block in self.mid_modules:
            h = block(h, condition)
        for level in self.up_modules:
            first, second, up = _parts(level)
            h = second(first(torch.cat([h, skips.pop()], 1), condition), condition)
            h = up(h)
        return self.final_conv(h).transpose(1, 2)


def _parts(level: nn.Module) -> Iterable[nn.Module]:
    assert isinstance(level, nn.ModuleList)
    return level


class _Resampled(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _ConvBlock(nn.Module):
    def __init__(self, into: int, out: int, kernel: int, groups: int | None, act: Any, eps: float) -> None:
        super().__init__()
        norm = nn.Identity() if groups is None else nn.GroupNorm(groups, out, eps)
        self.block = nn.Sequential(nn.Conv1d(into, out, kernel, padding=kernel // 2), norm, act())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _FiLMBlock(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module, film: nn.Module, into: int, out: int, scale: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([first, second])
        self.cond_encoder, self.film_scale = film, scale
        self.residual_conv = nn.Identity() if into == out else nn.Conv1d(into, out, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.blocks[0](x)
        film = self.cond_encoder(condition).unsqueeze(-1)
        if self.film_scale:  # scale first, then bias
            scale, bias = film.chunk(2, 1)
            h = scale * h + bias
        else:
            h = h + film
        return self.blocks[1](h) + self.residual_conv(x)


def _film(sizes: UnetSizes, channels: int, act: Any) -> nn.Sequential:
    into, out = sizes.condition_dim + sizes.step_dim, (2 if sizes.film_scale else 1) * channels
    if sizes.film_layers == 1:
        return nn.Sequential(act(), nn.Linear(into, out))
    return nn.Sequential(nn.Linear(into, out), act(), nn.Linear(out, out), act(), nn.Linear(out, out))
