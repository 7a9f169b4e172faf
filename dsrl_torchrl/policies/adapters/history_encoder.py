"""From the env's entries to the condition of a denoising network: features of each step of the history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from dsrl_torchrl.errors import UserError


class Exact(nn.Module):
    """A module that keeps the precision of its buffers where the network around it is cast to less.

    In bfloat16 the ᾱ of a schedule's last step is 1, and a position of 500 pixels is wrong by two.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Self:  # to(), bfloat16(), cuda()
        def kept(t: Tensor) -> Tensor:
            applied = fn(t)
            return applied if applied.dtype.itemsize >= t.dtype.itemsize else t.to(applied.device)

        return super()._apply(kept, *args, **kwargs)


class Affine(Exact):
    """``(x - shift) / width + bias`` and back; what every project's normalisation comes down to.

    In these three, not as scale and offset, so that a dimension that never moved (a width of 0 or 1e-8) keeps its
    value.

    Args:
        shift, width, bias: ``[d]`` for states, ``[C, 1, 1]`` for images.
    """

    shift: Tensor
    width: Tensor
    bias: Tensor

    def __init__(self, shift: Tensor, width: Tensor, bias: Tensor) -> None:
        super().__init__()
        for name, value in {"shift": shift, "width": width, "bias": bias}.items():
            self.register_buffer(name, value.float().contiguous())

    @classmethod
    def identity(cls, *shape: int) -> Affine:
        """Leaves everything as it is."""
        return cls(torch.zeros(shape), torch.ones(shape), torch.zeros(shape))

    @classmethod
    def from_range(cls, low: Tensor, high: Tensor, eps: float = 0.0) -> Affine:
        """``[low, high]`` to [-1, 1], with ``eps`` added to the width."""
        return cls(low, (high - low + eps) / 2, -torch.ones_like(low))

    @classmethod
    def from_moments(cls, mean: Tensor, std: Tensor) -> Affine:
        """To zero mean and unit variance."""
        return cls(mean, std, torch.zeros_like(mean))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` in env units -> normalised."""
        return (x - self.shift) / self.width + self.bias

    def inverse(self, x: Tensor) -> Tensor:
        """Normalised -> env units."""
        return (x - self.bias) * self.width + self.shift


class State(nn.Module):
    """Features of a state entry: its normalised values.

    Args:
        scale: of ``[d]``.
        statistics: mean and standard deviation ``[d]`` of the data, if known.
    """

    def __init__(self, scale: Affine, statistics: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.scale, self.statistics = scale, statistics
        self.size, self.rest = scale.shift.numel(), ()  # of a step: [size, *rest]
        self.features = self.size

    def forward(self, x: Tensor) -> Tensor:
        """``[N, d]`` -> ``[N, d]``."""
        return self.scale(x.to(self.scale.shift.dtype))


class Image(nn.Module):
    """Features of an image entry: uint8 to [0, 1], normalised, encoded.

    Args:
        scale: of ``[C, 1, 1]``.
        encoder: ``[N, C, H, W]`` -> ``[N, features]``.
        features: what it makes of an image.
        size: ``(H, W)`` that it takes; ``None``: any.
    """

    def __init__(self, scale: Affine, encoder: nn.Module, features: int, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.scale, self.encoder, self.features = scale, encoder, features
        self.size, self.rest = scale.shift.shape[0], size or (None, None)
        self.statistics = None

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` uint8 -> ``[N, features]``."""
        if x.dtype != torch.uint8:
            raise UserError(f"images should be uint8, got {x.dtype}")
        scaled = self.scale(x.to(self.scale.shift.dtype) / 255)
        return self.encoder(scaled.to(next(self.encoder.parameters()).dtype))


class HistoryEncoder(nn.Module):
    """Features of all entries, step by step: ``[features of step 1, ..., features of step n]``, oldest first.

    Args:
        names: of the entries, for messages.
        features: one of :class:`State` or :class:`Image` for each entry, in the order in which the network reads them.
        obs_horizon: ``n``; each entry is ``[*B, n * size, *rest]``.
    """

    def __init__(self, names: Sequence[object], features: Sequence[State | Image], obs_horizon: int) -> None:
        super().__init__()
        self.names, self.obs_horizon = names, obs_horizon
        self.features = nn.ModuleList(features)

    @property
    def features_dim(self) -> int:
        """``n`` times the features of all entries."""
        return self.obs_horizon * sum(feature.features for feature in self.features)  # type: ignore[misc]

    def forward(self, entries: Sequence[Tensor]) -> Tensor:
        """Entries ``[*B, n * size, *rest]`` -> ``[*B, features_dim]``.

        Raises:
            UserError: an entry of another shape, or an image that is not uint8.
        """
        n, batch, found = self.obs_horizon, None, []
        for name, feature, entry in zip(self.names, self.features, entries, strict=True):
            assert isinstance(feature, (State, Image))
            wanted = (n * feature.size, *feature.rest)
            own = max(entry.ndim - len(wanted), 0)
            got, batch = entry.shape[own:], entry.shape[:own] if batch is None else batch
            if entry.shape[:own] != batch or not _fits(got, wanted):
                sizes = ", ".join("any" if size is None else str(size) for size in wanted)
                raise UserError(
                    f"the policy expects {name} [*B, {sizes}] ({n} steps of history), *B = {list(batch)}, "
                    f"got {list(entry.shape)}"
                )
            steps = entry.reshape(-1, feature.size, *got[1:])  # (B * n, ...)
            found.append(feature(steps).reshape(-1, n, feature.features))
        return torch.cat(found, -1).reshape(*(batch or ()), self.features_dim)


def _fits(got: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(got) == len(wanted) and all(w in (None, g) for g, w in zip(got, wanted, strict=True))
