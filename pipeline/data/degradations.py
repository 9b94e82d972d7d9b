"""From clean photographs to the two tasks' data: small pictures for super-resolution, dark raw for low light.

A prepared split is a dict of arrays without pickles; every picture's pixels follow one another in flat arrays, because
pictures may differ in size. N pictures, input sides h×w, target sides scale·h × scale·w:

| key | type | shape | what |
| --- | --- | --- | --- |
| task | str | () | "super_resolution" or "low_light" |
| names | str | [N] | file names |
| scale | int64 | () | target pixels for one input pixel, along a side |
| sizes | int64 | [N, 2] | input height and width |
| high | uint8 | [Σ scale²·h·w, 3] | the target, sRGB |
| low | uint8 | [Σ h·w, 3] | super-resolution: the input, sRGB |
| exposures | float64 | [2, 2] | low light: lowest and highest exposure ratio, lowest and highest λ_shot |
| ratio | float32 | [N] | low light with a fixed exposure: the exposure ratio |
| raw | int16 | [Σ 4·h·w] | low light with a fixed exposure: dark samples, packed [4, h, w] a picture |
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.photographs import load_image
from pipeline.data.raw import Exposures, expose, mosaic_packed, sample_noise
from pipeline.errors import UserError
from pipeline.files import write_bytes

Prepared = dict[str, np.ndarray]

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


def bicubic_downscale(picture: np.ndarray, scale: int) -> np.ndarray:
    """[H, W, 3] uint8 to [H/scale, W/scale, 3] uint8; both sides must be multiples of `scale`.

    The same bytes as MATLAB's `imresize`, which made DIV2K's small pictures: a cubic with a = −0.5, widened by `scale`
    against aliasing, mirrored borders, and one rounding at the end. (Pillow's kernel is the same, but it also rounds
    between its two passes, and is off by up to 7 levels.)
    """
    h, w = picture.shape[0] // scale, picture.shape[1] // scale
    margin = 2 * scale  # pixels; the kernel reaches no further, and torch would cut it off at the border
    mirrored = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    planes = torch.from_numpy(mirrored).permute(2, 0, 1).unsqueeze(0).double()
    small = F.interpolate(planes, size=(h + 4, w + 4), mode="bicubic", antialias=True)[..., 2:-2, 2:-2]
    small = small.add(0.5).floor_()  # halves go up, as MATLAB's; torch's round would take them to the even level
    return small.clamp_(0, 255).to(torch.uint8)[0].permute(1, 2, 0).contiguous().numpy()


def bicubic_upscale(low: Tensor, scale: int) -> Tensor:
    """[B, 3, h, w] to [B, 3, scale·h, scale·w], float in 0 … 1, by the same cubic: the report's bicubic row."""
    size = (low.shape[-2] * scale, low.shape[-1] * scale)
    # antialias changes nothing in width when enlarging, but picks a = −0.5; without it torch's cubic has a = −0.75.
    return F.interpolate(low, size=size, mode="bicubic", antialias=True).clamp(0, 1)


def prepare_super_resolution(paths: list[Path], scale: int, minimum: int) -> Prepared:
    """The split of these photographs for super-resolution by `scale`; the arrays are listed at the top of this module.

    Pictures are cut at the right and the bottom to multiples of `scale`. Raises UserError, naming the file, for one
    that then has a side under `minimum` target pixels or can't be read.
    """
    high = [_load_cropped(path, scale, minimum) for path in paths]
    split = _common("super_resolution", paths, high, scale)
    split["low"] = np.concatenate([bicubic_downscale(picture, scale).reshape(-1, 3) for picture in high])
    return split


# --- synthetic low light ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """How one picture goes back to raw: linear sRGB to camera matrix [3, 3], and the (r, g, b) gains to undo."""

    matrix: np.ndarray
    gains: np.ndarray


def draw_camera(rng: np.random.Generator) -> Camera:
    """A random camera after Brooks et al. (CVPR 2019): a random mix of four published matrices, and random gains.

    Matrix rows sum to 1, so that grey stays grey; the white balance lies in the gains: red U(1.9, 2.4), blue U(1.5,
    1.9), all times the exposure gain 1/N(0.8, 0.1).
    """
    weights = rng.uniform(size=(4, 1, 1))
    matrix = (XYZ_TO_CAMERA * weights).sum(axis=0) / weights.sum() @ RGB_TO_XYZ
    brightness = 1.0 / rng.normal(0.8, 0.1)
    gains = brightness * np.array([rng.uniform(1.9, 2.4), 1.0, rng.uniform(1.5, 1.9)])
    return Camera(matrix / matrix.sum(axis=1, keepdims=True), gains)


# sRGB's 256 levels back to linear light: the inverse of a smooth tone curve, then of the gamma (Brooks et al. 2019)
LINEAR = (0.5 - np.sin(np.arcsin(1.0 - 2.0 * np.arange(256) / 255.0) / 3.0)).clip(0.0) ** 2.2


def unprocess(pictures: Tensor, matrices: Tensor, gains: Tensor) -> Tensor:
    """[B, 3, H, W] sRGB (uint8) to cameras' linear RGB in 0 … 1: tone curve, gamma, colours, gains undone in turn.

    `matrices` is [B, 3, 3], `gains` [B, 3], one camera for each picture. Where a picture nears white, the gains are
    undone less and less, as dividing would make a coloured grey of what was a saturated highlight.
    """
    table = torch.from_numpy(LINEAR).to(matrices)
    linear = table.index_select(0, pictures.flatten().int()).view(len(pictures), 3, -1)
    colour = torch.bmm(matrices, linear)
    keep = colour.mean(dim=1, keepdim=True).sub_(HIGHLIGHT).clamp_(min=0).div_(1 - HIGHLIGHT).square_()
    undo = 1 / gains[:, :, None]
    return colour.mul_(torch.maximum(keep + (1 - keep) * undo, undo)).clamp_(0, 1).view(pictures.shape)


def prepare_low_light(paths: list[Path], seed: int, minimum: int, fixed_noise: bool, exposures: Exposures) -> Prepared:
    """The split of these photographs as synthetic low light; the arrays are listed at the top of this module.

    With `fixed_noise` (validation and test) one dark exposure of each picture is made now and kept: its camera, ratio
    and noise are drawn from `seed` and the file's name, so that they don't depend on what else is in the split. Without
    (training) every patch of every batch gets its own. Pictures are cut to even sides. Raises UserError, naming the
    file, for one that then has a side under `minimum` target pixels or can't be read.
    """
    high = [_load_cropped(path, 2, minimum) for path in paths]
    split = _common("low_light", paths, high, 2)
    split["exposures"] = np.array([exposures.ratio, exposures.shot])
    if fixed_noise:
        drawn = [np.random.default_rng((seed, zlib.crc32(path.name.encode()))) for path in paths]
        dark = [darken(_image(picture), rng, exposures) for picture, rng in zip(high, drawn, strict=True)]
        split["ratio"] = np.concatenate([ratio.numpy() for _, ratio in dark])
        split["raw"] = np.concatenate([samples.to(torch.int16).numpy().ravel() for samples, _ in dark])
    return split


def darken(pictures: Tensor, rng: np.random.Generator, exposures: Exposures) -> tuple[Tensor, Tensor]:
    """Dark raw of [B, 3, 2h, 2w] sRGB (uint8): samples [B, 4, h, w] in sensor steps, and the exposure ratios [B].

    Each picture gets a camera, a ratio and a noise level of its own from `rng`; the noise itself is drawn on the
    pictures' device, from a generator that `rng` seeds.
    """
    device, count = pictures.device, len(pictures)
    cameras = [draw_camera(rng) for _ in range(count)]
    drawn = [np.stack([c.matrix for c in cameras]), np.stack([c.gains for c in cameras])]
    drawn += [rng.uniform(*exposures.ratio, size=count), *sample_noise(rng, count, exposures.shot)]
    matrices, gains, ratio, shot, read = (torch.from_numpy(values).float().to(device) for values in drawn)
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
    clean = mosaic_packed(unprocess(pictures, matrices, gains))
    return expose(clean, ratio, shot, read, generator), ratio


def _image(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).contiguous()


# --- both ---------------------------------------------------------------------------------------------------------


def _load_cropped(path: Path, multiple: int, minimum: int) -> np.ndarray:
    picture = load_image(path)
    h, w = picture.shape[:2]
    cropped = picture[: h - h % multiple, : w - w % multiple]
    if min(cropped.shape[:2]) < max(minimum, multiple):
        usable = f"{cropped.shape[1]}×{cropped.shape[0]} usable" if cropped.shape != picture.shape else "all usable"
        raise UserError(
            f"{path}: the picture has {w}×{h} pixels ({usable}), but each side needs at least {max(minimum, multiple)}"
        )
    return np.ascontiguousarray(cropped)


def _common(task: str, paths: list[Path], high: list[np.ndarray], scale: int) -> Prepared:
    if not paths:
        raise UserError(f"{task}: there is no picture to prepare; a split needs at least one")
    return {
        "task": np.array(task),
        "names": np.array([path.name for path in paths]),
        "scale": np.array(scale, dtype=np.int64),
        "sizes": np.array([picture.shape[:2] for picture in high], dtype=np.int64) // scale,
        "high": np.concatenate([picture.reshape(-1, 3) for picture in high]),
    }


def save_split(path: Path, prepared: Prepared) -> None:
    """Write a prepared split as one .npz: equal content gives equal bytes; a half-written file never has the name."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{key: prepared[key] for key in sorted(prepared)})
    write_bytes(path, buffer.getvalue())


def load_split(path: Path) -> Prepared:
    """Read what `save_split` wrote. Raises UserError, naming the file, when it is missing or not such a file."""
    try:
        # Opened here, as numpy leaves a broken archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            prepared = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as a prepared split ({error}); the prepare stage writes it") from error
    missing = {"task", "names", "scale", "sizes", "high"} - prepared.keys()
    if str(prepared.get("task")) == "low_light":
        missing |= {"exposures"} - prepared.keys()
    if missing:
        raise UserError(f"{path}: lacks {', '.join(sorted(missing))}; the prepare stage writes it anew")
    return prepared
