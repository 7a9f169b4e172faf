"""ResNet-18/34 with spatial softmax: the image encoder of LeRobot's diffusion policy, names as in torchvision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsrl_torchrl.errors import UserError

#: Residual blocks of the four stages (He et al., 2016).
STAGES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
WIDTHS = (64, 128, 256, 512)
CHANNELS_A_GROUP = 16  # where group norm replaces batch norm


def backbone(name: str, group_norm: bool, channels: int = 3) -> nn.Sequential:
    """torchvision's ResNet without pooling and classifier: ``[N, C, H, W]`` -> ``[N, 512, ceil(H/32), ceil(W/32)]``.

    Raises:
        UserError: a deeper one.
    """
    if name not in STAGES:
        raise UserError(f"vision_backbone should be one of {', '.join(STAGES)}, got {name!r}")

    def norm(width: int) -> nn.Module:
        return nn.GroupNorm(width // CHANNELS_A_GROUP, width) if group_norm else nn.BatchNorm2d(width)

    stages, into = [], 64
    for width, blocks in zip(WIDTHS, STAGES[name], strict=True):
        stride = 1 if width == 64 else 2
        layers = [_BasicBlock(into if i == 0 else width, width, stride if i == 0 else 1, norm) for i in range(blocks)]
        stages.append(nn.Sequential(*layers))
        into = width
    first = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return nn.Sequential(first, norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *stages)


class _BasicBlock(nn.Module):
    def __init__(self, into: int, out: int, stride: int, norm) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), norm(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(out)
        same = stride == 1 and into == out
        self.downsample = None if same else nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (h + (x if self.downsample is None else self.downsample(x))).relu()


class SpatialSoftmax(nn.Module):
    """Where each map is active, on average (Finn et al., 2016): ``[N, C, H, W]`` -> ``[N, K, 2]`` in [-1, 1].

    Args:
        size: ``(C, H, W)``.
        keypoints: ``K``, by a 1x1 convolution.
    """

    pos_grid: Tensor  # (H * W, 2), x before y; stored in the checkpoint

    def __init__(self, size: tuple[int, int, int], keypoints: int) -> None:
        super().__init__()
        channels, height, width = size
        self.nets = nn.Conv2d(channels, keypoints, 1)
        self.register_buffer("pos_grid", torch.zeros(height * width, 2))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> ``[N, K, 2]``."""
        return self.nets(x).flatten(2).softmax(-1) @ self.pos_grid


class RgbEncoder(nn.Module):
    """LeRobot's ``DiffusionRgbEncoder`` at evaluation: resize, crop the centre, ResNet, spatial softmax, linear, ReLU.

    Args:
        size: ``(C, H, W)`` of an image.
        vision_backbone: ``resnet18`` or ``resnet34``.
        use_group_norm: in place of batch norm.
        keypoints: of the spatial softmax.
        resize: ``(H, W)`` to which an image is resized first.
        crop: ``(H, W)`` of the centre that is read.
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        vision_backbone: str,
        use_group_norm: bool,
        keypoints: int,
        resize: tuple[int, int] | None,
        crop: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.resize, self.crop = resize, crop
        height, width = crop or resize or size[1:]
        self.backbone = backbone(vision_backbone, use_group_norm, size[0])
        self.pool = SpatialSoftmax((WIDTHS[-1], -(-height // 32), -(-width // 32)), keypoints)
        self.out = nn.Linear(2 * keypoints, 2 * keypoints)

    def extra_repr(self) -> str:
        """What the state dict does not hold."""
        return f"resize={self.resize}, crop={self.crop}"

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> ``[N, 2 * keypoints]``."""
        if self.resize is not None:
            x = F.interpolate(x, self.resize, mode="bilinear", antialias=True)
        if self.crop is not None:
            (height, width), (rows, columns) = x.shape[-2:], self.crop
            top, left = round((height - rows) / 2), round((width - columns) / 2)
            x = x[..., top : top + rows, left : left + columns]
        return self.out(self.pool(self.backbone(x)).flatten(1)).relu()
