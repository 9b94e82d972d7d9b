"""A denoiser of NAFNet's blocks: no activation functions, but gates and channel attention.

After Chen et al., "Simple Baselines for Image Restoration" (ECCV 2022), with one change: their LayerNorm takes its
statistics over channels, so that no channel it touches could go without changing all others, and the pruner would leave
them whole. Here a scale and a shift for each channel stand in its place (Touvron et al., "ResMLP", 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Affine(nn.Module):
    """weight · x + bias, one of each for every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class SimpleGate(nn.Module):
    """The first half of the channels times the second."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return left * right


class Block(nn.Module):
    """Depthwise convolution, gate and channel attention, then a gated pair of 1×1 convolutions; both are residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = Affine(channels)
        self.expand1 = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.gate = SimpleGate()
        self.attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.project1 = nn.Conv2d(channels, channels, 1)
        self.norm2 = Affine(channels)
        self.expand2 = nn.Conv2d(channels, 2 * channels, 1)
        self.project2 = nn.Conv2d(channels, channels, 1)
        # Starting from zero, every block is the identity at first: deep stacks train without a norm.
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate(self.depthwise(self.expand1(self.norm1(x))))
        y = x + self.beta * self.project1(y * self.attention(y))
        return y + self.gamma * self.project2(self.gate(self.expand2(self.norm2(y))))


class Denoiser(nn.Module):
    """RGB [N, 3, H, W] to the same size, any height and width: half of the blocks' work is done at half the size."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.intro = nn.Conv2d(3, channels, 3, padding=1)
        self.encoder = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.down = nn.Conv2d(channels, 2 * channels, 2, stride=2)
        self.middle = nn.Sequential(*(Block(2 * channels) for _ in range(blocks)))
        self.up = nn.Sequential(nn.Conv2d(2 * channels, 4 * channels, 1, bias=False), nn.PixelShuffle(2))
        self.decoder = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.ending = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = x
        if height % 2 or width % 2:
            padded = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        skip = self.encoder(self.intro(padded))
        features = self.middle(self.down(skip))
        features = self.decoder(self.up(features) + skip)
        return x + self.ending(features)[:, :, :height, :width]


def build(channels: int = 32, blocks: int = 4) -> nn.Module:
    """channels: at full size, twice as many at half size; blocks: of the encoder, the middle and the decoder each."""
    return Denoiser(channels, blocks)
