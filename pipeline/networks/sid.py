"""SID: the U-Net of "Learning to See in the Dark" (Chen et al., CVPR 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.networks import check_whole_number

LEVELS = 5  # four halvings


class DoubleConv(nn.Module):
    """Two 3×3 convolutions, each followed by LeakyReLU(0.2). [B, inputs, H, W] to [B, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x), 0.2)
        return F.leaky_relu(self.conv2(x), 0.2)


class SID(nn.Module):
    """Packed Bayer [B, 4, H, W], amplified to 0..1, to RGB [B, 3, 2·H, 2·W], linear: not clipped. Any H and W.

    `base` is the width of the first level; each of the four below doubles it. `upsample_bias` gives the transposed
    convolutions biases, which the published network lacks and weights of some PyTorch ports have (pretrained.py).
    The default is the published network with 7,760,268 parameters.

    Raises UserError unless base is a whole number of at least 1 and upsample_bias true or false.
    """

    def __init__(self, base: int = 32, upsample_bias: bool = False) -> None:
        super().__init__()
        check_whole_number("sid", "base", base, 1, 1024)
        if not isinstance(upsample_bias, bool):
            raise UserError(f"network 'sid': upsample_bias must be true or false, not {upsample_bias!r}")
        widths = [base * 2**level for level in range(LEVELS)]
        # The encoder goes from the finest level to the coarsest, upsample and decoder from the coarsest to the finest.
        self.encoder = nn.ModuleList(
            DoubleConv(inputs, outputs) for inputs, outputs in zip([4, *widths[:-1]], widths, strict=True)
        )
        pairs = list(zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True))
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2, bias=upsample_bias) for coarse, fine in pairs
        )
        self.decoder = nn.ModuleList(DoubleConv(2 * fine, fine) for _, fine in pairs)
        self.tail = nn.Conv2d(base, 12, 1)
        self._initialise()

    def _initialise(self) -> None:
        """Start as the published TensorFlow code does: its two initialisers, and biases at zero."""
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                # TensorFlow cuts a truncated normal at two standard deviations.
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            elif isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.ConvTranspose2d | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            # Rounding up keeps the last row and column of an odd size, as TensorFlow's SAME padding does.
            x = block(x if level == 0 else F.max_pool2d(x, 2, ceil_mode=True))
            skips.append(x)
        for upsample, block, skip in zip(self.upsample, self.decoder, reversed(skips[:-1]), strict=True):
            # An odd size came back one too large: the surplus is at the bottom and at the right.
            x = upsample(x)[:, :, : skip.shape[2], : skip.shape[3]]
            x = block(torch.cat([x, skip], dim=1))
        return F.pixel_shuffle(self.tail(x), 2)
