"""What is done to clean photographs: small images for super-resolution, dark raw for low light, Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.raw import Exposures, expose, mosaic_packed, sample_noise

HIGHLIGHT = 0.9  # above this grey level the inverse gains fade out, so that white stays white

# XYZ to camera RGB of the Darmstadt Noise Dataset's four cameras, as published with Brooks et al. (CVPR 2019); rows are
# camera red, green and blue.
XYZ_TO_CAMERA = np.array(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
# Linear sRGB (D65) to XYZ, IEC 61966-2-1.
RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


# --- super-resolution ---------------------------------------------------------------------------------------------


def bicubic_downscale(image: np.ndarray, scale: int) -> np.ndarray:
    """[H, W, 3] uint8 to [H/scale, W/scale, 3] uint8; both sides must be multiples of `scale`.

    The definition of MATLAB's `imresize` (bicubic, antialiasing, uint8): a cubic with a = −0.5 (Keys 1981) widened by
    `scale`; first fewer rows, then fewer columns, rounded to 8 bits after each, halves up; pixels beyond the border
    repeat those on it. The tests hold scale 2 to integer arithmetic written from this definition, bit for bit; no
    output of MATLAB itself was compared.
    """
    return _fewer(_fewer(image, scale).swapaxes(0, 1), scale).swapaxes(0, 1).copy()


def _fewer(image: np.ndarray, scale: int) -> np.ndarray:
    """[H, …] uint8 to [H/scale, …] uint8."""
    reach = 2 * scale  # pixels, on both sides of a new pixel's centre
    centres = np.arange(image.shape[0] // scale) * scale + (scale - 1) / 2
    first = np.ceil(centres - reach).astype(int)
    taps = first[:, None] + np.arange(2 * reach + 1)
    x = np.abs(centres[:, None] - taps) / scale
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x <= 1, near, np.where(x <= 2, far, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    taps = taps.clip(0, image.shape[0] - 1)
    total = np.zeros((len(centres), *image.shape[1:]))
    for k in range(taps.shape[1]):
        total += weights[:, k].reshape(-1, *[1] * (image.ndim - 1)) * image[taps[:, k]]
    return np.floor(total + 0.5).clip(0, 255).astype(np.uint8)  # halves go up


def bicubic_upscale(low: Tensor, scale: int) -> Tensor:
    """[B, 3, h, w] to [B, 3, scale·h, scale·w], float in 0 … 1, by the same cubic: the report's bicubic row."""
    size = (low.shape[-2] * scale, low.shape[-1] * scale)
    # antialias changes nothing in width when enlarging, but picks a = −0.5; without it torch's cubic has a = −0.75.
    return F.interpolate(low, size=size, mode="bicubic", antialias=True).clamp(0, 1)


# --- synthetic low light ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """How one image goes back to raw: linear sRGB to camera matrix [3, 3], and the (r, g, b) gains to undo."""

    matrix: np.ndarray
    gains: np.ndarray


def _camera(xyz_to_camera: np.ndarray, gains: np.ndarray) -> Camera:
    """A camera whose matrix rows sum to 1, so that grey stays grey; the white balance lies in the gains."""
    matrix = xyz_to_camera @ RGB_TO_XYZ
    return Camera(matrix / matrix.sum(axis=1, keepdims=True), gains)


# One real sensor, the first of the four, with gains in the middle of what Brooks et al. draw: red 2.1, blue 1.7, all
# over a brightness of 0.8. A network of it has colours to learn that one camera's pictures determine.
CAMERA = _camera(XYZ_TO_CAMERA[0], np.array([2.1, 1.0, 1.7]) / 0.8)


def draw_camera(rng: np.random.Generator) -> Camera:
    """A random camera after Brooks et al. (CVPR 2019): a random mix of four published matrices, and random gains.

    Gains: red U(1.9, 2.4), blue U(1.5, 1.9), all times the exposure gain 1/N(0.8, 0.1).
    """
    weights = rng.uniform(size=(4, 1, 1))
    mixed = (XYZ_TO_CAMERA * weights).sum(axis=0) / weights.sum()
    brightness = 1.0 / rng.normal(0.8, 0.1)
    return _camera(mixed, brightness * np.array([rng.uniform(1.9, 2.4), 1.0, rng.uniform(1.5, 1.9)]))


# sRGB's 256 levels back to linear light: the inverse of a smooth tone curve, then of the gamma (Brooks et al. 2019)
LINEAR = (0.5 - np.sin(np.arcsin(1.0 - 2.0 * np.arange(256) / 255.0) / 3.0)).clip(0.0) ** 2.2


def unprocess(images: Tensor, matrices: Tensor, gains: Tensor) -> Tensor:
    """[B, 3, H, W] sRGB (uint8) to cameras' linear RGB in 0 … 1: tone curve, gamma, colours, gains undone in turn.

    `matrices` is [B, 3, 3], `gains` [B, 3], one camera for each image. Where an image nears white, the gains are
    undone less and less, as dividing would make a coloured grey of what was a saturated highlight.
    """
    table = torch.from_numpy(LINEAR).to(matrices)
    linear = table.index_select(0, images.flatten().int()).view(len(images), 3, -1)
    colour = torch.bmm(matrices, linear)
    keep = colour.mean(dim=1, keepdim=True).sub_(HIGHLIGHT).clamp_(min=0).div_(1 - HIGHLIGHT).square_()
    undo = 1 / gains[:, :, None]
    return colour.mul_(torch.maximum(keep + (1 - keep) * undo, undo)).clamp_(0, 1).view(images.shape)


def darken(images: Tensor, rng: np.random.Generator, exposures: Exposures) -> tuple[Tensor, Tensor]:
    """Dark raw of [B, 3, 2h, 2w] sRGB (uint8): samples [B, 4, h, w] in sensor steps, and the exposure ratios [B].

    Each image gets a ratio and a noise level of its own from `rng`, and a camera where these are random; the noise
    itself is drawn on the images' device, from a generator that `rng` seeds.
    """
    device, count = images.device, len(images)
    cameras = [CAMERA if exposures.cameras == "one" else draw_camera(rng) for _ in range(count)]
    drawn = [np.stack([c.matrix for c in cameras]), np.stack([c.gains for c in cameras])]
    drawn += [rng.uniform(*exposures.ratio, size=count), *sample_noise(rng, count, exposures.shot)]
    matrices, gains, ratio, shot, read = (torch.from_numpy(values).float().to(device) for values in drawn)
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
    clean = mosaic_packed(unprocess(images, matrices, gains))
    return expose(clean, ratio, shot, read, generator), ratio


# --- noise --------------------------------------------------------------------------------------------------------


def add_noise(clean: Tensor, sigma: float, rng: np.random.Generator) -> Tensor:
    """Images in 0 … 1 with white Gaussian noise of `sigma` 8-bit levels, neither clipped nor rounded.

    That is the usual test of denoisers. The noise is drawn on the images' device, from a generator that `rng` seeds.
    """
    generator = torch.Generator(clean.device).manual_seed(int(rng.integers(2**63)))
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    return clean + noise * (sigma / 255)
