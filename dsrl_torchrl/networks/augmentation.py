"""Augmentation of the images that encoders learn from: random shifts and colour jitter.

For training updates alone: acting, evaluation and the base policy see the true images.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

#: Share of the images whose colours are jittered; dsrl_pi0's.
JITTERED = 0.8


def augment(
    observations: TensorDictBase, shift: int, jitter: tuple[float, float, float, float] | None
) -> TensorDictBase:
    """A copy of ``observations`` ``[*B]`` whose images, uint8 entries ``[*B, C, H, W]``, are drawn anew.

    Args:
        observations: entries by name; all but images stay as they are.
        shift: of :func:`random_shift`; 0 for none.
        jitter: of :func:`color_jitter`; ``None`` for none.
    """
    augmented = observations.copy()
    for key, value in observations.items(True, True):
        if value.dtype == torch.uint8 and value.ndim == observations.ndim + 3:
            image = value.flatten(0, -4) if observations.ndim else value.unsqueeze(0)
            image = random_shift(image, shift) if shift else image
            image = image if jitter is None else color_jitter(image, *jitter)
            augmented.set(key, image.reshape(value.shape))
    return augmented


def random_shift(images: Tensor, pad: int) -> Tensor:
    """Every image by itself, by up to ``pad`` pixels along each axis; what comes in repeats the edge.

    All shifts are equally likely: a crop of the padded image (Kostrikov et al. 2020, DrQ, with 4 pixels of 84). The
    channels of an image, such as a history of frames, shift together.

    Args:
        images: ``[n, C, H, W]`` of any dtype.
        pad: in pixels.
    """
    n, channels, height, width = images.shape
    offsets = torch.randint(-pad, pad + 1, (2, n, 1), device=images.device)
    rows, columns = (
        (torch.arange(side, device=images.device) + offset).clamp(0, side - 1)  # (n, side)
        for side, offset in zip((height, width), offsets, strict=True)
    )
    # One flat index: two of them, one for each axis, take twice as long.
    index = (width * rows.unsqueeze(2) + columns.unsqueeze(1)).reshape(n, 1, -1).expand(n, channels, -1)
    return images.flatten(2).gather(2, index).reshape(images.shape)


def color_jitter(images: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Changes the colours of :data:`JITTERED` of the images, each by draws of its own, as dsrl_pi0 does.

    With u, v, f, h uniform for every image, in this order and clipped to the range of the pixels after each:
    ``x + u``, |u| <= brightness; ``v (x - mean) + mean`` with the mean of a channel, |v - 1| <= contrast; the HSV
    saturation times f, |f - 1| <= saturation; the HSV hue plus h, |h| <= hue of a turn. dsrl_pi0, whose amounts are
    0.2, 0.1, 0.1 and 0.03, draws the order, too, which no CUDA graph could hold.

    Args:
        images: ``[n, 3 m, H, W]`` in [0, 255]; the m frames of a history change alike.
        brightness, contrast, saturation, hue: amounts, in [0, 1], the hue's up to 0.5.

    Returns:
        The same shape as float32, in [0, 255].
    """
    n, _, height, width = images.shape
    x = (images.float() / 255).reshape(n, -1, 3, height, width)
    draws = 2 * torch.rand(n, 4, device=images.device) - 1
    draws = draws * (torch.rand(n, 1, device=images.device) < JITTERED)
    u, v, f, h = draws.reshape(n, 4, 1, 1, 1, 1).unbind(1)
    x = (x + brightness * u).clamp(0, 1)
    mean = x.mean((-2, -1), keepdim=True)
    x = ((1 + contrast * v) * (x - mean) + mean).clamp(0, 1)
    x = scale_saturation(x, 1 + saturation * f)
    x = turn_hue(x, hue * h)
    return 255 * x.clamp(0, 1).reshape(images.shape)


def scale_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """HSV's saturation times ``factor``, at most 1; hue and value stay: RGB ``[..., 3, H, W]`` in [0, 1]."""
    value, chroma = _value_and_chroma(x)
    # Every channel's distance from the value is a share of the chroma, which may grow up to the value itself.
    factor = torch.minimum(factor, value / chroma.clamp(min=1e-9))
    return value - (value - x) * factor


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """HSV's hue plus ``turns``; saturation and value stay: RGB ``[..., 3, H, W]`` in [0, 1]."""
    value, chroma = _value_and_chroma(x)
    red, green, blue = x.split(1, dim=-3)
    safe = chroma.clamp(min=1e-9)
    sixths = torch.where(
        red == value,
        (green - blue) / safe,
        torch.where(green == value, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # A channel falls from the value by the chroma over the sixths of the circle that are far from its own.
    centre = torch.arange(5, 0, -2, device=x.device).reshape(3, 1, 1)
    k = (centre + sixths + 6 * turns) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _value_and_chroma(x: Tensor) -> tuple[Tensor, Tensor]:
    value = x.amax(-3, keepdim=True)
    return value, value - x.amin(-3, keepdim=True)
