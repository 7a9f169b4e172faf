"""From named observation entries to the one feature vector that latent policy and critics read.

An encoder of an entry is any module with ``out_features`` that takes ``[*B, *shape]`` and gives ``[*B, out_features]``;
it is made by ``encoder(shape, statistics)``. Which kinds there are is chosen in ``conf/networks/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import nn

FEATURES_KEY = "features"


class ObservationEncoder(TensorDictModuleBase):
    """Encodes each entry by itself and writes the concatenation to ``features`` ``[*B, out_features]``.

    An encoder of an entry is any module with ``out_features`` that takes ``[*B, *shape]``. Those with parameters
    (pixels) are trained by the critic that learns from rewards; actor and distilled critic read detached features.

    Args:
        encoders: by entry.
    """

    def __init__(self, encoders: Mapping[NestedKey, nn.Module]) -> None:
        super().__init__()
        self.in_keys = list(encoders)
        self.out_keys = [FEATURES_KEY]
        self.encoders = nn.ModuleList(encoders.values())
        sizes: list[Any] = [encoder.out_features for encoder in encoders.values()]
        self.out_features: int = sum(sizes)
        self.trainable = next(self.parameters(), None) is not None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        features = [encoder(tensordict.get(key)) for key, encoder in zip(self.in_keys, self.encoders, strict=True)]
        return tensordict.set(FEATURES_KEY, features[0] if len(features) == 1 else torch.cat(features, dim=-1))


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


class PixelEncoder(nn.Module):
    """Four 3x3 convolutions of 32 channels, stride 2 in the first, then a linear layer, LayerNorm and tanh.

    The encoder of RLinf's DSRL on π0, which has 64 features for 64x64 images. Images stay uint8 up to here.

    Args:
        shape: ``[C, H, W]``; a history of images has its frames in C.
        statistics: not read: pixels are scaled to [-1, 1].
        features: size of the output.
    """

    def __init__(
        self,
        shape: Sequence[int],
        statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        features: int = 64,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        for stride in (2, 1, 1, 1):
            layers += [nn.Conv2d(channels, 32, 3, stride=stride, padding=1), nn.ReLU()]
            channels = 32
        flat = 32 * -(-height // 2) * -(-width // 2)
        self.network = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(flat, features), nn.LayerNorm(features), nn.Tanh()
        )
        self.out_features = features

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 ``[*B, C, H, W]`` -> ``[*B, out_features]``."""
        batch = image.shape[:-3]
        x = image.reshape(-1, *image.shape[-3:]).float() / 127.5 - 1.0
        return self.network(x).reshape(*batch, self.out_features)
