"""PSNR and SSIM by a stated protocol, and the statistics of paired differences.

Protocol: clamp to 0..1, round to 8 bit, all RGB channels together, `border` pixels shaved from each side
(super-resolution: scale + 6, after Lim et al. 2017; low light: 0), mean over images. SSIM is scikit-image's
structural_similarity with channel_axis=-1, data_range=1.0 and its other settings left alone (7x7 uniform window, sample
covariance).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Quality:
    """Per-image figures, in the order of `names`; PSNR in dB."""

    names: tuple[str, ...]
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]

    @property
    def mean_psnr(self) -> float:
        return float(np.mean(self.psnr))

    @property
    def mean_ssim(self) -> float:
        return float(np.mean(self.ssim)) if self.ssim else float("nan")


def border(task: str, scale: int) -> int:
    """Output pixels that the protocol shaves from each side."""
    return scale + 6 if task == "super_resolution" else 0


def to_8bit(image: Tensor, shave: int = 0) -> Tensor:
    """[1,3,H,W] in any range to [3,H-2s,W-2s] whole numbers 0..255 as float64."""
    image = image[0].double().clamp(0, 1).mul(255).round()
    return image[:, shave : image.shape[1] - shave, shave : image.shape[2] - shave]


def psnr(output: Tensor, target: Tensor, shave: int = 0) -> float:
    """PSNR in dB of [1,3,H,W] images in 0..1; equal images give 100 dB, so that means stay finite."""
    error = (to_8bit(output, shave) - to_8bit(target, shave)).square().mean().item()
    return 10 * float(np.log10(255**2 / error)) if error else 100.0


def ssim(output: Tensor, target: Tensor, shave: int = 0) -> float:
    """Structural similarity of [1,3,H,W] images in 0..1."""
    from skimage.metrics import structural_similarity

    first, second = (to_8bit(x, shave).div(255).permute(1, 2, 0).cpu().numpy() for x in (output, target))
    return float(structural_similarity(first, second, channel_axis=-1, data_range=1.0))


@torch.no_grad()
def measure(network: nn.Module | None, images, shave: int, with_ssim: bool = True) -> Quality:
    """Quality over data.patches.Images, full frames in float32; without a network, of the images' reference."""
    if network is not None:
        network.eval()
    psnrs, ssims = [], []
    for i in range(len(images)):
        inputs, target = images.pair(i)
        output = images.reference(i) if network is None else network(inputs)
        psnrs.append(psnr(output, target, shave))
        if with_ssim:
            ssims.append(ssim(output, target, shave))
    return Quality(tuple(images.names), tuple(psnrs), tuple(ssims))


@dataclass(frozen=True)
class Difference:
    """A paired difference over images: mean, 95% interval of the mean, and the image that loses most."""

    mean: float
    low: float
    high: float
    worst: float
    worst_name: str


def paired(first: tuple[float, ...], second: tuple[float, ...], names: tuple[str, ...], seed: int, resamples: int):
    """first - second with a percentile bootstrap over images (Efron 1979); -> Difference."""
    difference = np.asarray(first) - np.asarray(second)
    draws = np.random.default_rng(seed).integers(0, len(difference), (resamples, len(difference)))
    low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
    worst = int(difference.argmin())
    return Difference(float(difference.mean()), float(low), float(high), float(difference[worst]), names[worst])
