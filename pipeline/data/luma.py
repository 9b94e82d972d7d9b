"""One channel of RGB, for networks that restore nothing but brightness, and back to RGB for pictures.

Luma is ITU-R BT.601's. For super-resolution it is Y of YCbCr, 16 to 235, as MATLAB's rgb2ycbcr makes it of 8-bit images
and SRCNN, VDSR and FSRCNN are tested on; for restoration it is grey, 0 to 255, as MATLAB's rgb2gray, on which grey
denoisers (DnCNN) are tested. Either is rounded to 8 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

# rows: Y − 16, Cb − 128, Cr − 128 in levels, of red, green and blue in 0 … 1
TO_YCBCR = torch.tensor(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=torch.float64
)


def _range(task: str) -> tuple[int, int]:
    """Black's level, and white's less black's."""
    return (16, 219) if task == "super_resolution" else (0, 255)


def luma(images: Tensor, task: str) -> Tensor:
    """[B, 3, H, W] of RGB in 0 … 1 to [B, 1, H, W], float32: levels over 255."""
    black, span = _range(task)
    level = (images.double() * (TO_YCBCR[0] * span / 219).to(images.device).view(3, 1, 1)).sum(dim=1, keepdim=True)
    return (level + black).round_().div_(255).float()


def coloured(image: Tensor, colours: Tensor, task: str) -> Tensor:
    """RGB in 0 … 1 of luma [1, 1, H, W] as above, with the Cb and Cr of an RGB image [1, 3, H, W]."""
    black, span = _range(task)
    y = (image.double() * 255 - black) * 219 / span
    matrix = TO_YCBCR.to(image.device)
    planes = torch.cat([y, torch.einsum("cr,brhw->bchw", matrix[1:], colours.double())], dim=1)
    return torch.einsum("rc,bchw->brhw", torch.linalg.inv(matrix), planes).clamp(0, 1).float()
