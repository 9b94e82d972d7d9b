"""EDSR: enhanced deep residual network for super-resolution (Lim et al., CVPR workshops 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.networks import check_whole_number

# Mean of the DIV2K training images as published with EDSR, red, green, blue in 0..1.
RGB_MEAN = (0.4488, 0.4371, 0.4040)


class ResidualBlock(nn.Module):
    """x + conv2(relu(conv1(x))), without batch norm and with residual scale 1. [B, C, H, W] to [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class EDSR(nn.Module):
    """RGB [B, 3, H, W] in 0..1 to RGB [B, 3, scale·H, scale·W], not clipped.

    The defaults are the published EDSR-baseline ×2 with 1,369,859 parameters. The weights start as torch starts
    every convolution, which is what the published code does.

    Raises UserError unless scale is 1 (restoration), 2, 3 or 4 and blocks and channels are whole numbers of at least 1.
    """

    mean: Tensor

    def __init__(self, scale: int = 2, blocks: int = 16, channels: int = 64) -> None:
        super().__init__()
        check_whole_number("edsr", "scale", scale, 1, 4)
        check_whole_number("edsr", "blocks", blocks, 1, 1024)
        check_whole_number("edsr", "channels", channels, 1, 4096)
        # A buffer rather than the published 1×1 convolution: it is fixed, and only real convolutions count as cost.
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1))
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.ModuleList(ResidualBlock(channels) for _ in range(blocks))
        self.body_end = nn.Conv2d(channels, channels, 3, padding=1)
        steps: list[nn.Module] = []
        for factor in {1: (), 4: (2, 2)}.get(scale, (scale,)):
            steps += [nn.Conv2d(channels, channels * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        self.upsample = nn.Sequential(*steps)
        self.tail = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x - self.mean)
        deep = shallow
        for block in self.body:
            deep = block(deep)
        deep = self.body_end(deep) + shallow
        return self.tail(self.upsample(deep)) + self.mean
