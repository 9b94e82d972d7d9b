"""SRResNet: super-resolution by residual blocks with batch norm.

After Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network" (CVPR 2017),
the generator of figure 4, with one change: what it makes is added to the bicubic enlargement, so that a training of
minutes starts from there.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """x + BN(conv(PReLU(BN(conv(x)))))"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.slope = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(self.slope(self.norm1(self.conv1(x)))))


class SRResNet(nn.Module):
    """RGB [N, 3, H, W] in 0..1 to [N, 3, scale·H, scale·W]; a step of 2 or 3 for each of the scale's factors."""

    def __init__(self, scale: int, blocks: int, channels: int) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Sequential(nn.Conv2d(3, channels, 9, padding=4), nn.PReLU(channels))
        self.body = nn.ModuleList(Block(channels) for _ in range(blocks))
        self.body_end = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        steps: list[nn.Module] = []
        for factor in {1: [], 2: [2], 3: [3], 4: [2, 2]}[scale]:
            steps += [
                nn.Conv2d(channels, factor**2 * channels, 3, padding=1),
                nn.PixelShuffle(factor),
                nn.PReLU(channels),
            ]
        self.upsample = nn.Sequential(*steps)
        self.tail = nn.Conv2d(channels, 3, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.head(x)
        features = first
        for block in self.body:
            features = block(features)
        enlarged = F.interpolate(x, scale_factor=float(self.scale), mode="bicubic")
        return enlarged + self.tail(self.upsample(first + self.body_end(features)))


def build(scale: int = 2, blocks: int = 16, channels: int = 64) -> nn.Module:
    """The published size by default; scale 1 to 4."""
    return SRResNet(scale, blocks, channels)
