"""One split out of files: each image read, degraded as the task asks, and handed on, one at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.degradations import bicubic_downscale, darken
from pipeline.data.raw import Exposures
from pipeline.data.storage import Prepared
from pipeline.errors import UserError
from pipeline.prepare import sid
from pipeline.prepare.images import image_size, load_image


@dataclass(frozen=True)
class Source:
    """One image on disk."""

    name: str
    target: Path
    input: Path | None = None  # None: it is made of the target
    ratio: float | None = None  # of a pair of raw files: the exposure ratio


@dataclass(frozen=True)
class Making:
    """What is made of the images of one split."""

    task: str
    scale: int
    minimum: int  # target pixels that each side needs
    exposures: Exposures | None = None  # synthetic low light
    noise: float | None = None  # restoration of noise: σ in 8-bit levels
    seed: int = 0
    fixed: bool = False  # whether each image gets one exposure for ever, or each patch of each batch its own
    multiple: int = 1  # of which an input's sides are
    channels: int = 3  # 1: luma of the images is learnt


def photographs(paths: list[Path]) -> list[Source]:
    """Targets whose inputs are made here."""
    return [Source(path.name, path) for path in paths]


def measure(source: Source, making: Making) -> tuple[int, int]:
    """Height and width of an image's input, from the headers of its files alone.

    Images are cut at the right and the bottom, so that the input's sides are multiples of `making.multiple`. Raises
    UserError, naming the file, for one that can't be read, has a side under `making.minimum` target pixels, or doesn't
    fit its input.
    """
    scale, path = making.scale, source.target
    step = scale * making.multiple  # target pixels
    if source.ratio is not None:
        assert source.input is not None  # a pair has both
        short, long = sid.place(source.input), sid.place(path)
        if short != long:
            sizes = " and ".join(f"{2 * w}×{2 * h} from row {top}, column {left}" for h, w, top, left in (short, long))
            raise UserError(f"{source.input}: doesn't fit {path}: their mosaics are {sizes}")
        full = 2 * short[0], 2 * short[1]
    else:
        full = image_size(path)
    h, w = (side - side % step for side in full)
    least = max(making.minimum, step)
    if min(h, w) < least:
        usable = f"{w}×{h} usable" if (h, w) != full else "all usable"
        raise UserError(
            f"{path}: the image has {full[1]}×{full[0]} pixels ({usable}), but each side needs at least {least}"
        )
    input_size = (full[0] // scale, full[1] // scale)
    if source.input is not None and source.ratio is None and image_size(source.input) != input_size:
        has = "×".join(map(str, reversed(image_size(source.input))))
        raise UserError(
            f"{source.input}: the input has {has} pixels, but its target {path.name} with scale {scale} needs "
            f"{input_size[1]}×{input_size[0]}"
        )
    return h // scale, w // scale


def bytes_needed(sources: list[Source], sizes: list[tuple[int, int]], making: Making) -> int:
    """What the split will take on disk."""
    total, targets = 0, set()
    for source, (h, w) in zip(sources, sizes, strict=True):
        real = source.ratio is not None
        if source.target not in targets:
            total += 3 * h * w * making.scale**2 * (2 if real else 1)
            targets.add(source.target)
        if making.task == "low_light":
            total += 8 * h * w if making.fixed or real else 0
        elif making.noise is None:
            total += 3 * h * w
    return total


def make(sources: list[Source], making: Making) -> tuple[Prepared, Iterator[Prepared]]:
    """A split as storage.save_split takes it: what is known from headers, then image by image the rest.

    With `making.fixed` (validation and test) an input's camera, exposure and noise are drawn from the seed and the
    file's name, so that they don't depend on what else is in the split. Without (training) every patch of every batch
    gets its own. Raises UserError, naming the file, for what `measure` refuses, and while reading for what can't be
    decoded.
    """
    if not sources:
        raise UserError(f"{making.task}: there is no image to prepare; a split needs at least one")
    sizes = [measure(source, making) for source in sources]
    split = {
        "task": np.array(making.task),
        "names": np.array([source.name for source in sources]),
        "scale": np.array(making.scale, dtype=np.int64),
        "sizes": np.array(sizes, dtype=np.int64),
    }
    if making.channels == 1:
        split["channels"] = np.array(1)
    if making.exposures is not None:
        split["exposures"] = np.array([making.exposures.ratio, making.exposures.shot])
        split["cameras"] = np.array(making.exposures.cameras)
    if making.noise is not None:
        split |= {"noise": np.array(making.noise), "seed": np.array(making.seed, dtype=np.int64)}
    if sources[0].ratio is not None:
        targets = list(dict.fromkeys(source.target for source in sources))
        split["shown"] = np.array([targets.index(source.target) for source in sources], dtype=np.int64)
    return split, _images(sources, sizes, making)


def _images(sources: list[Source], sizes: list[tuple[int, int]], making: Making) -> Iterator[Prepared]:
    developed = set()
    for source, (h, w) in zip(sources, sizes, strict=True):
        if source.ratio is not None:
            assert source.input is not None  # a pair has both
            samples = sid.read_packed(source.input)[:, :h, :w]
            piece = {"ratio": np.array([source.ratio], dtype=np.float32), "raw": samples.ravel()}
            if source.target not in developed:
                piece["high"] = sid.read_target(source.target)[: 2 * h, : 2 * w].reshape(-1, 3)
                developed.add(source.target)
            yield piece
            continue
        high = _read(source.target, h * making.scale, w * making.scale, making.scale * making.multiple)
        piece = {"high": high.reshape(-1, 3)}
        if making.exposures is not None:
            if making.fixed:
                rng = np.random.default_rng((making.seed, zlib.crc32(source.name.encode())))
                dark, ratio = darken(_tensor(high), rng, making.exposures)
                piece |= {"ratio": ratio.numpy(), "raw": dark.to(torch.int16).numpy().ravel()}
        elif making.noise is None:
            low = (
                bicubic_downscale(high, making.scale)
                if source.input is None
                else _read(source.input, h, w, making.multiple)
            )
            piece["low"] = low.reshape(-1, 3)
        yield piece


def _read(path: Path, h: int, w: int, multiple: int) -> np.ndarray:
    image = load_image(path)
    if tuple(side - side % multiple for side in image.shape[:2]) != (h, w):
        raise UserError(f"{path}: its orientation stands behind its pixels, where no header is; store it upright")
    return np.ascontiguousarray(image[:h, :w])


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).contiguous()
