"""Networks over noisy action chunks: ``net(observation [B, obs], x [B, H, A], t [B]) -> [B, H, A]``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsrl_torchrl.errors import UserError, positive_int

TIME_FEATURES = 32
MAX_TIME_FREQUENCY = 100.0  # rad per unit of time: resolves 100 diffusion steps, smooth enough for 3 Euler steps
NORM_GROUPS = 8


class ChunkNetwork(nn.Module):
    """The common call. ``t`` is in [0, 1] for flow and diffusion alike.

    ``options`` holds the keywords that rebuild the network, ``kind`` included, as plain JSON values.
    """

    options: dict[str, Any]

    def forward(self, observation: Tensor, x: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError


class TimeEmbedding(nn.Module):
    """Sines and cosines of ``t`` at geometrically spaced frequencies: ``[B]`` -> ``[B, TIME_FEATURES]``."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        exponents = torch.linspace(0, math.log(MAX_TIME_FREQUENCY), TIME_FEATURES // 2)
        self.register_buffer("frequencies", exponents.exp())

    def forward(self, t: Tensor) -> Tensor:
        angles = t.unsqueeze(-1) * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], -1)


class ChunkMLP(ChunkNetwork):
    """An MLP over observation, flattened chunk and time: enough for state observations, and the fastest.

    Args:
        observation_dim, action_dim, horizon: the sizes of the call.
        width: units per hidden layer.
        depth: number of hidden layers.
    """

    def __init__(self, observation_dim: int, action_dim: int, horizon: int, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.options = {
            "kind": "mlp",
            "width": positive_int("network.width", width),
            "depth": positive_int("network.depth", depth),
        }
        self.time_embedding = TimeEmbedding()
        size = observation_dim + horizon * action_dim + TIME_FEATURES
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(size, width), nn.SiLU()]
            size = width
        self.layers = nn.Sequential(*layers, nn.Linear(size, horizon * action_dim))

    def forward(self, observation: Tensor, x: Tensor, t: Tensor) -> Tensor:
        features = torch.cat([observation, x.flatten(-2), self.time_embedding(t)], -1)
        return self.layers(features).view_as(x)


class FiLMBlock(nn.Module):
    """Two convolutions with a residual; the condition scales and shifts the features between them.

    FiLM (Perez et al., 2018) as Diffusion Policy's 1D U-Net uses it (Chi et al., RSS 2023, section III-A).
    """

    def __init__(self, in_channels: int, out_channels: int, condition_dim: int) -> None:
        super().__init__()
        self.first = _conv_block(in_channels, out_channels)
        self.film = nn.Linear(condition_dim, 2 * out_channels)
        self.second = _conv_block(out_channels, out_channels)
        same = in_channels == out_channels
        self.residual = nn.Identity() if same else nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition).unsqueeze(-1).chunk(2, dim=1)  # (B, C, 1)
        h = self.first(x) * (1 + scale) + shift
        return self.second(h) + self.residual(x)


def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(in_channels, out_channels, 3, padding=1),
        nn.GroupNorm(NORM_GROUPS, out_channels),
        nn.SiLU(),
    )


class UNet1D(ChunkNetwork):
    """A convolutional U-Net over the horizon, conditioned on observation and time by FiLM.

    Time is halved (rounding up) between levels while at least 4 steps are left, and brought back to the length of
    the skip connection on the way up, so any horizon works.

    Args:
        observation_dim, action_dim, horizon: the sizes of the call.
        channels: channels per level, multiples of 8, outermost first.
    """

    def __init__(
        self, observation_dim: int, action_dim: int, horizon: int, channels: Sequence[int] = (64, 128)
    ) -> None:
        super().__init__()
        channels = [positive_int("network.channels", c) for c in channels]
        if not channels or any(c % NORM_GROUPS for c in channels):
            raise UserError(f"network.channels must be one or more multiples of {NORM_GROUPS}, got {channels}")
        self.options = {"kind": "unet", "channels": channels}
        condition_dim = 2 * channels[0]
        self.time_embedding = TimeEmbedding()
        self.condition = nn.Sequential(
            nn.Linear(observation_dim + TIME_FEATURES, condition_dim),
            nn.SiLU(),
            nn.Linear(condition_dim, condition_dim),
            nn.SiLU(),
        )
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.smooth = nn.ModuleList(), nn.ModuleList()
        size, length = action_dim, horizon
        for i, width in enumerate(channels):
            self.down.append(FiLMBlock(size, width, condition_dim))
            size = width
            if i + 1 < len(channels):
                stride = 2 if length >= 4 else 1
                self.shrink.append(nn.Conv1d(width, width, 3, stride=stride, padding=1))
                length = -(-length // stride)
        self.middle = FiLMBlock(size, size, condition_dim)
        for width in reversed(channels[:-1]):
            self.smooth.append(nn.Conv1d(size, width, 3, padding=1))
            self.up.append(FiLMBlock(2 * width, width, condition_dim))
            size = width
        self.out = nn.Conv1d(size, action_dim, 1)

    def forward(self, observation: Tensor, x: Tensor, t: Tensor) -> Tensor:
        condition = self.condition(torch.cat([observation, self.time_embedding(t)], -1))  # (B, condition_dim)
        h = x.transpose(1, 2)  # (B, A, H)
        skips = []
        for i, block in enumerate(self.down):
            h = block(h, condition)
            if i < len(self.shrink):
                skips.append(h)
                h = self.shrink[i](h)
        h = self.middle(h, condition)
        for smooth, block in zip(self.smooth, self.up, strict=True):
            skip = skips.pop()
            h = smooth(F.interpolate(h, size=skip.shape[-1], mode="nearest"))
            h = block(torch.cat([h, skip], 1), condition)
        return self.out(h).transpose(1, 2)


NETWORKS: dict[str, type[ChunkNetwork]] = {"mlp": ChunkMLP, "unet": UNet1D}


def make_network(options: Mapping[str, Any], observation_dim: int, action_dim: int, horizon: int) -> ChunkNetwork:
    """Builds a network from ``{"kind": "mlp" | "unet", ...}``.

    Raises:
        UserError: unknown kind, unknown option, or an option out of range.
    """
    if not isinstance(options, Mapping):
        raise UserError(f"network must be a mapping such as {{'kind': 'mlp', 'width': 256}}, got {options!r}")
    keywords = {str(k): v for k, v in options.items()}
    kind = keywords.pop("kind", None)
    if kind not in tuple(NETWORKS):  # a tuple, since a config may hold anything, unhashable values included
        raise UserError(f"network.kind must be one of {', '.join(NETWORKS)}, got {kind!r}")
    try:
        return NETWORKS[kind](observation_dim, action_dim, horizon, **keywords)  # type: ignore[call-arg]
    except TypeError as error:
        raise UserError(f"network options {keywords} do not fit the kind {kind!r}: {error}") from error
