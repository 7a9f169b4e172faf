"""From named observation entries to the one feature vector that latent policy and critics read.

An encoder of an entry is any module with ``out_features`` that takes ``[*B, *shape]`` and gives ``[*B, out_features]``;
it is made by ``encoder(shape, statistics)``. Which kinds there are is chosen in ``conf/networks/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import nn

from dsrl_torchrl.errors import UserError

FEATURES_KEY = "features"
#: Those of a latent policy with encoders of its own.
ACTOR_FEATURES_KEY = "actor_features"


class ObservationEncoder(TensorDictModuleBase):
    """Encodes each entry by itself and writes the concatenation to ``out_key`` ``[*B, out_features]``.

    An encoder of an entry is any module with ``out_features`` that takes ``[*B, *shape]``. Those with parameters
    (pixels) are trained by the critic that learns from rewards; actor and distilled critic read detached features,
    unless the actor has encoders of its own (``networks.actor_encoder``), which its loss trains.

    Args:
        encoders: by entry.
        out_key: where the features go.
    """

    def __init__(self, encoders: Mapping[NestedKey, nn.Module], out_key: NestedKey = FEATURES_KEY) -> None:
        super().__init__()
        self.in_keys = list(encoders)
        self.out_keys = [out_key]
        self.encoders = nn.ModuleList(encoders.values())
        sizes: list[Any] = [encoder.out_features for encoder in encoders.values()]
        self.out_features: int = sum(sizes)
        self.trainable = next(self.parameters(), None) is not None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        features = [encoder(tensordict.get(key)) for key, encoder in zip(self.in_keys, self.encoders, strict=True)]
        return tensordict.set(self.out_keys[0], features[0] if len(features) == 1 else torch.cat(features, dim=-1))


class StateEncoder(nn.Module):
    """``x -> [z, sin(π f z), cos(π f z) for f in bands]`` with ``z = (x - mean) / std`` clamped to ±10 (Eq. 25).

    The statistics never change during training: running ones would move the input of a trained critic.

    The Fourier features counter the spectral bias of value networks (Yang et al. 2022, "Overcoming the spectral bias
    of neural value approximation"; Tancik et al. 2020). Robot tasks hinge on millimetres that are a tenth of an
    observation's standard deviation: a cube that hovers 3 cm from its goal for ever (value -1 / (1 - γ)) and one that
    arrives at 2.5 cm look alike to a plain MLP, which then lets the policy stall there.

    Args:
        shape: of the entry; flattened.
        statistics: mean and std, of that shape; ``None`` leaves the entry as it is, unclamped.
        fourier_bands: frequencies in half cycles per standard deviation; empty for the standardised entry alone.
    """

    mean: torch.Tensor  # (dim,)
    std: torch.Tensor  # (dim,)
    limit: torch.Tensor  # ()

    def __init__(
        self,
        shape: Sequence[int],
        statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        fourier_bands: Sequence[float] = (0.5, 1.0),
    ) -> None:
        super().__init__()
        self.ndim, dim = len(shape), math.prod(shape)
        mean, std = (torch.zeros(dim), torch.ones(dim)) if statistics is None else statistics
        self.register_buffer("mean", mean.detach().float().reshape(-1).clone())
        self.register_buffer("std", std.detach().float().reshape(-1).clone())
        self.register_buffer("limit", torch.tensor(torch.finfo(torch.float32).max if statistics is None else 10.0))
        self.bands = tuple(fourier_bands)

    @property
    def out_features(self) -> int:
        """Number of features."""
        return self.mean.numel() * (1 + 2 * len(self.bands))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[*B, *shape]`` of any dtype -> ``[*B, out_features]``."""
        x = x.flatten(x.ndim - self.ndim).to(self.mean.dtype) if self.ndim else x.unsqueeze(-1).to(self.mean.dtype)
        z = ((x - self.mean) / self.std).clamp(-self.limit, self.limit)
        waves = [wave(math.pi * band * z) for band in self.bands for wave in (torch.sin, torch.cos)]
        return torch.cat([z, *waves], dim=-1)


class LinearStateEncoder(nn.Module):
    """The standardised entry through a linear layer, LayerNorm and tanh: RLinf's, 8 numbers to 64 features.

    Args:
        shape: of the entry; flattened.
        statistics: as :class:`StateEncoder`'s; RLinf has none.
        features: size of the output.
    """

    def __init__(
        self,
        shape: Sequence[int],
        statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        features: Annotated[int, Field(ge=1)] = 64,
    ) -> None:
        super().__init__()
        standardise = StateEncoder(shape, statistics, fourier_bands=())
        linear = nn.Linear(standardise.out_features, features)
        self.network = nn.Sequential(standardise, linear, nn.LayerNorm(features), nn.Tanh())
        self.out_features = features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[*B, *shape]`` of any dtype -> ``[*B, out_features]``."""
        return self.network(x)


class PixelEncoder(nn.Module):
    """3x3 convolutions of 32 channels with ReLU, then a linear layer, LayerNorm and tanh.

    The layers of RLinf's DSRL on π0 (strides 2, 1, 1, 1, padding 1, 64 features for 64x64 images) and of dsrl_pi0 (the
    same strides without padding, 50 features), initialised as they are there: orthogonal convolutions, Xavier's normal
    linear layer, no biases. With our strides an image costs about a quarter of RLinf's on a CPU. Images stay uint8 up
    to here.

    Args:
        shape: ``[C, H, W]``; a history of images has its frames in C.
        statistics: not read: pixels are scaled to [-1, 1].
        features: size of the output.
        strides: of the convolutions, one each.
        padding: of every convolution with zeros, in pixels.

    Raises:
        UserError: the images are too small for these strides.
    """

    def __init__(
        self,
        shape: Sequence[int],
        statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        features: Annotated[int, Field(ge=1)] = 64,
        strides: Annotated[Sequence[Annotated[int, Field(ge=1)]], Field(min_length=1)] = (2, 2, 2, 1),
        padding: Annotated[int, Field(ge=0, le=1)] = 1,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        for stride in strides:
            layers += [nn.Conv2d(channels, 32, 3, stride=stride, padding=padding), nn.ReLU(inplace=True)]
            channels, height, width = 32, *((side + 2 * padding - 3) // stride + 1 for side in (height, width))
        if min(height, width) < 1:
            raise UserError(
                f"images of {shape[1]} x {shape[2]} pixels are too small for the strides {list(strides)} with padding "
                f"{padding}: nothing is left of them"
            )
        linear = nn.Linear(32 * height * width, features)
        self.network = nn.Sequential(*layers, FlattenChannelsLast(), linear, nn.LayerNorm(features), nn.Tanh())
        for layer in self.network:
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight, math.sqrt(2))
            elif isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.out_features = features

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``[*B, C, H, W]`` of any dtype, in [0, 255] -> ``[*B, out_features]``."""
        batch = image.shape[:-3]
        # On a CPU convolutions take half of the time in this order. Weights keep theirs: an optimiser's state from a
        # checkpoint has it, and a fused step reads both as they lie in memory.
        x = image.reshape(-1, *image.shape[-3:]).contiguous(memory_format=torch.channels_last)
        x = x.to(torch.float32, copy=True).div_(127.5).sub_(1.0)
        x = x.to(next(self.parameters()).dtype)  # a base policy may be bfloat16
        return self.network(x).reshape(*batch, self.out_features)


class FlattenChannelsLast(nn.Module):
    """``[n, C, H, W]`` -> ``[n, H W C]``: no copy of what convolutions leave in this order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return x.permute(0, 2, 3, 1).flatten(1)
