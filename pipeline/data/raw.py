"""Bayer raw: the sample scale, packing, the sensor's noise, and the plainest way back to an image.

Everything here is in normalised units: 0 is the black level and 1 is white, `(sample − 512) / (16383 − 512)`.
The mosaic is RGGB: red at (row 0, column 0), green at (0, 1) and (1, 0), blue at (1, 1) of each 2×2 cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLACK = 512  # sample value of no light, in units of the converter (14 bits, as Sony's)
WHITE = 16383  # largest sample value
RANGE = WHITE - BLACK
MAX_RATIO = 300.0  # SID amplifies by no more than this

# Order of the packed channels as (row, column) in the 2×2 cell, as in SID; it goes round the cell and not line by line.
PACKING = ((0, 0), (0, 1), (1, 1), (1, 0))
COLOURS = (0, 1, 2, 1)  # colour (0 red, 1 green, 2 blue) under each packed channel of an RGGB mosaic


@dataclass(frozen=True)
class Exposures:
    """How dark the frames are, how noisy the sensor, and whose: each range holds its lowest and its highest value."""

    ratio: tuple[float, float] = (100.0, 300.0)  # light of a good exposure over that of the dark one, as SID's; uniform
    # λ_shot, noise variance a unit of signal, log-uniform: from a good sensor at base ISO to a small one at its limit
    shot: tuple[float, float] = (1e-4, 0.012)
    cameras: Literal["one", "random"] = "random"  # degradations.CAMERA for all images, or another for each


def pack_bayer(mosaic: Tensor) -> Tensor:
    """[..., 2h, 2w] mosaic to [..., 4, h, w], channels in the order of `PACKING`."""
    return torch.stack([mosaic[..., dy::2, dx::2] for dy, dx in PACKING], dim=-3)


def unpack_bayer(packed: Tensor) -> Tensor:
    """[..., 4, h, w] back to the [..., 2h, 2w] mosaic: the inverse of `pack_bayer`."""
    *lead, _, h, w = packed.shape
    mosaic = packed.new_empty(*lead, 2 * h, 2 * w)
    for channel, (dy, dx) in enumerate(PACKING):
        mosaic[..., dy::2, dx::2] = packed[..., channel, :, :]
    return mosaic


def mosaic_packed(rgb: Tensor) -> Tensor:
    """[..., 3, 2h, 2w] camera RGB to the [..., 4, h, w] packed samples that an RGGB sensor keeps of it."""
    kept = [rgb[..., colour, dy::2, dx::2] for colour, (dy, dx) in zip(COLOURS, PACKING, strict=True)]
    return torch.stack(kept, dim=-3)


def sample_noise(rng: np.random.Generator, count: int, shot: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """`count` noise levels (λ_shot within `shot`, λ_read), float64 [count]: the noise's variance is λ_shot·x + λ_read.

    Fit to the Darmstadt set's cameras by Brooks et al., "Unprocessing Images for Learned Raw Denoising" (CVPR 2019).
    """
    low, high = np.log(shot)
    log_shot = rng.uniform(low, high, size=count)
    log_read = 2.18 * log_shot + 1.20 + rng.normal(0.0, 0.26, size=count)
    return np.exp(log_shot), np.exp(log_read)


def expose(clean: Tensor, ratio: Tensor, shot: Tensor, read: Tensor, generator: torch.Generator) -> Tensor:
    """Samples (float32, whole numbers 0 … WHITE) of a sensor that got 1/ratio of the light.

    `clean` is [B, 4, h, w] in 0 … 1; `ratio`, `shot` and `read` are [B]. Noise comes after the division, where the
    sensor has it. `generator` lives on the device of `clean`.
    """
    ratio, shot, read = (value.view(-1, 1, 1, 1) for value in (ratio, shot, read))
    dark = clean / ratio
    noise = torch.randn(dark.shape, generator=generator, device=dark.device)
    dark = dark + noise * (dark * shot + read).sqrt()
    return (dark * RANGE + BLACK).round_().clamp_(0, WHITE)


def amplify(samples: Tensor, ratio: Tensor) -> Tensor:
    """SID's network input: max(sample − black, 0) / (white − black) × min(ratio, 300), clipped at 1.

    `samples` is [B, 4, h, w] of any type, `ratio` [B]; the result is float32 in 0 … 1.
    """
    scale = ratio.clamp(max=MAX_RATIO).view(-1, 1, 1, 1) / RANGE
    return ((samples.float() - BLACK).clamp_(min=0) * scale).clamp_(max=1)


def demosaic_amplified(packed: Tensor) -> Tensor:
    """What amplification alone gives: bilinear demosaic and a gamma of 1/2.2, without white balance or denoising.

    [B, 4, h, w] in 0 … 1 to [B, 3, 2h, 2w] in 0 … 1. This is the low-light report's "amplified input" row.
    """
    mosaic = unpack_bayer(packed).unsqueeze(-3)
    sparse = mosaic.new_zeros(mosaic.shape[0], 3, *mosaic.shape[-2:])
    for colour, (dy, dx) in zip(COLOURS, PACKING, strict=True):
        sparse[:, colour, dy::2, dx::2] = mosaic[:, 0, dy::2, dx::2]
    corners = mosaic.new_tensor([[0.25, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 0.25]])  # red and blue: one in four
    cross = mosaic.new_tensor([[0.0, 0.25, 0.0], [0.25, 1.0, 0.25], [0.0, 0.25, 0.0]])  # green: every other
    kernel = torch.stack([corners, cross, corners]).unsqueeze(1)
    # Reflection leaves out the edge itself, so that a mirrored sample has the colour its place in the mosaic should
    # have.
    full = F.conv2d(F.pad(sparse, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)
    return full.clamp(0, 1).pow(1 / 2.2)


def estimate_noise(mosaic: np.ndarray, bins: int = 12) -> tuple[float, float]:
    """(λ_shot, λ_read) of one raw frame: the line through noise variance against signal.

    `mosaic` is [2h, 2w] samples, BLACK … WHITE, of any Bayer order: only samples of one colour are compared. The
    residual is the second difference in both directions (Immerkær 1996), blind to anything locally linear; in each bin
    of equal count by signal the variance comes from the median absolute residual, so that edges count little. Texture
    still raises the result somewhat. Samples within 2% of white are left out, their noise is cut off.
    """
    x = (pack_bayer(torch.from_numpy(mosaic.astype(np.float64))) - BLACK) / RANGE
    laplace = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
    kernel = torch.outer(laplace, laplace).view(1, 1, 3, 3) / 6.0  # squares sum to 1: keeps the variance of white noise
    residual = F.conv2d(x.unsqueeze(1), kernel)[..., 1:-1, 1:-1].flatten().numpy()
    signal = F.avg_pool2d(x.unsqueeze(1), 5, stride=1).flatten().numpy()
    kept = signal < 0.98
    residual, signal = residual[kept], signal[kept]
    parts = np.array_split(np.argsort(signal), bins)
    mean = np.array([signal[part].mean() for part in parts])
    # 0.6745 is the third quartile of the standard normal: the median of |residual| over it is the standard deviation.
    variance = np.array([(np.median(np.abs(residual[part])) / 0.6745) ** 2 for part in parts])
    # A variance estimate's own error grows with it, so each bin is weighted by 1 / variance.
    shot, read = np.polyfit(mean, variance, 1, w=1 / variance)
    return float(shot), float(read)
