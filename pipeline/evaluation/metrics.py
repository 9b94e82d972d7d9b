"""PSNR and SSIM by a stated protocol, and the statistics of paired differences.

Protocol: clamp to 0..1, round to 8 bit, all RGB channels together, `border` pixels cropped from each side
(super-resolution: scale + 6, after Lim et al. 2017; else 0), mean over images. SSIM is scikit-image's
structural_similarity with channel_axis=-1, data_range=1.0 and its other settings left alone (7x7 uniform window, sample
covariance).

Of networks of luma alone (data/luma.py) PSNR and SSIM are those of that channel, rounded to 8 bit, cropped by
`luma_border` pixels, with the SSIM of the next paragraph.

Extra test sets are measured on the Y channel too, as papers print it (BasicSR's `test_y_channel`): BT.601 luma of 16 to
235 as MATLAB's rgb2ycbcr, not rounded, `luma_border` pixels cropped; SSIM there is Wang et al.'s (2004), with an 11x11
Gaussian window of deviation 1.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import UserError, explained


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


def border(task: str, scale: int, channels: int = 3) -> int:
    """Output pixels that the protocol crops from each side: the `crop_border` of the functions below."""
    if channels == 1:
        return luma_border(task, scale)
    return scale + 6 if task == "super_resolution" else 0


def luma_border(task: str, scale: int) -> int:
    """Output pixels that the Y channel's protocol crops from each side."""
    return scale if task == "super_resolution" else 0


def to_8bit(image: Tensor, crop_border: int = 0) -> Tensor:
    """[1,C,H,W] in any range to [C,H-2·crop_border,W-2·crop_border], whole numbers 0..255 as float64; infinite: NaN."""
    image = image[0].double()
    image = image.where(image.isfinite(), torch.nan).clamp(0, 1).mul(255).round()
    return image[:, crop_border : image.shape[1] - crop_border, crop_border : image.shape[2] - crop_border]


def psnr(output: Tensor, target: Tensor, crop_border: int = 0) -> float:
    """PSNR in dB of [1,C,H,W] images in 0..1; equal images give 100 dB, so that means stay finite."""
    error = (to_8bit(output, crop_border) - to_8bit(target, crop_border)).square().mean().item()
    return 10 * float(np.log10(255**2 / error)) if error else 100.0


def ssim(output: Tensor, target: Tensor, crop_border: int = 0) -> float:
    """Structural similarity of [1,3,H,W] images in 0..1; of luma [1,1,H,W] it is `ssim_y`."""
    if output.shape[1] == 1:
        return ssim_y(output, target, crop_border)
    from skimage.metrics import structural_similarity

    first, second = (to_8bit(x, crop_border).div(255).permute(1, 2, 0).cpu().numpy() for x in (output, target))
    return float(structural_similarity(first, second, channel_axis=-1, data_range=1.0))


def luma(image: Tensor, crop_border: int = 0) -> np.ndarray:
    """[1,3,H,W] in 0..1, rounded to 8 bit, to its luma [H-2·crop_border,W-2·crop_border], 16..235.

    ITU-R BT.601, as MATLAB's rgb2ycbcr. Of [1,1,H,W], which is luma, its levels.
    """
    if image.shape[1] == 1:
        return to_8bit(image, crop_border)[0].cpu().numpy()
    red, green, blue = to_8bit(image, crop_border).cpu().numpy()
    return 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255


def psnr_y(output: Tensor, target: Tensor, crop_border: int = 0) -> float:
    """PSNR in dB of the Y channels, against a peak of 255; equal images give 100 dB."""
    error = float(np.square(luma(output, crop_border) - luma(target, crop_border)).mean())
    return 10 * float(np.log10(255**2 / error)) if error else 100.0


def ssim_y(output: Tensor, target: Tensor, crop_border: int = 0) -> float:
    """Structural similarity of the Y channels; each side needs 11 pixels after cropping."""
    from skimage.metrics import structural_similarity

    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    return float(structural_similarity(luma(output, crop_border), luma(target, crop_border), **settings))


@torch.no_grad()
def measure(network: nn.Module | None, images, crop_border: int, with_ssim: bool = True) -> Quality:
    """Quality over data.dataset.Images, full frames in float32; without a network, of the images' reference."""
    psnrs, ssims = [], []
    for output, target in _restored(network, images):
        psnrs.append(psnr(output, target, crop_border))
        if with_ssim:
            ssims.append(ssim(output, target, crop_border))
    return Quality(tuple(images.names), tuple(psnrs), tuple(ssims))


@torch.no_grad()
def measure_set(network: nn.Module | None, images, task: str) -> dict[str, float]:
    """Means over an extra test set by both protocols: psnr, ssim (as `measure`), psnr_y and ssim_y."""
    crop_border, crop_border_y = border(task, images.scale, images.channels), luma_border(task, images.scale)
    rows = [
        (psnr(*pair, crop_border), ssim(*pair, crop_border), psnr_y(*pair, crop_border_y), ssim_y(*pair, crop_border_y))
        for pair in _restored(network, images)
    ]
    return dict(zip(("psnr", "ssim", "psnr_y", "ssim_y"), np.mean(rows, axis=0).tolist(), strict=True))


@torch.no_grad()
def psnr_after_colour_fit(network: nn.Module | None, images, crop_border: int) -> float:
    """Mean PSNR in dB when each image's channels are scaled and shifted to fit the target best (least squares).

    What it has more than the plain PSNR is the share of the error that is colour and brightness, and not detail or
    noise.
    """
    return float(np.mean([psnr(_fitted(*pair), pair[1], crop_border) for pair in _restored(network, images)]))


def _fitted(output: Tensor, target: Tensor) -> Tensor:
    """[1,3,H,W] the output times a factor plus a constant, each channel's own."""
    x, y = output.double().flatten(2), target.double().flatten(2)
    x_mean, y_mean = x.mean(dim=2, keepdim=True), y.mean(dim=2, keepdim=True)
    slope = ((x - x_mean) * (y - y_mean)).sum(dim=2, keepdim=True) / (x - x_mean).square().sum(
        dim=2, keepdim=True
    ).clamp_min(1e-12)
    return (slope * (x - x_mean) + y_mean).view(output.shape)


def _restored(network: nn.Module | None, images) -> Iterator[tuple[Tensor, Tensor]]:
    if network is not None:
        network.eval()
    for i in range(len(images)):
        inputs, target = images.pair(i)
        if network is None:
            yield images.reference(i), target
            continue
        with explained(f"the forward of {type(network).__name__} fails on {images.names[i]}"):
            output = network(inputs)
        if not isinstance(output, Tensor) or output.shape != target.shape:
            shape = f"{tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise UserError(
                f"the forward of {type(network).__name__} gives {shape} for {images.names[i]}, but "
                f"{tuple(target.shape)} is needed"
            )
        yield output, target


@dataclass(frozen=True)
class Difference:
    """A change over paired images, plus is better: mean, 95% interval of the mean, and the image that loses most."""

    mean: float
    low: float
    high: float
    worst: float
    worst_name: str


def paired(
    first: tuple[float, ...], second: tuple[float, ...], names: tuple[str, ...], seed: int, resamples: int
) -> Difference:
    """The change from `second` to `first`, first - second, with a percentile bootstrap over images (Efron 1979)."""
    change = np.asarray(first) - np.asarray(second)
    draws = np.random.default_rng(seed).integers(0, len(change), (resamples, len(change)))
    low, high = np.percentile(change[draws].mean(axis=1), [2.5, 97.5])
    worst = int(change.argmin())
    return Difference(float(change.mean()), float(low), float(high), float(change[worst]), names[worst])


def image_rows(scores: dict[str, Quality]) -> list[list[str]]:
    """CSV of every image's figures under every solution, and its PSNR change against the baseline in dB."""
    table = [["image", "solution", "psnr", "ssim", "psnr_change"]]
    for solution, score in scores.items():
        for image, psnr, ssim, base in zip(score.names, score.psnr, score.ssim, scores["baseline"].psnr, strict=True):
            table.append([image, solution, f"{psnr:.4f}", f"{ssim:.5f}", f"{psnr - base:.4f}"])
    return table
