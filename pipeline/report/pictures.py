"""Crops of a test image: target, input, baseline, a method's output and what differs, from files in results/ alone."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.crops import busiest
from pipeline.files import again, first
from pipeline.report.figures import blank, save

ZOOM, GAP, LABEL = 3, 6, 26  # screen pixels: of one pixel, between crops, above them


@dataclass(frozen=True)
class Crop:
    """One view of the part of a test image that is shown."""

    title: str
    pixels: np.ndarray  # [side, side, 3] uint8

    @property
    def uri(self) -> str:
        """The pixels as a PNG within a page."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, "png", optimize=True)
        return data_uri(buffer.getvalue())


def crops(frames: Path, method: str, side: int) -> list[Crop]:
    """The target's window of `side` pixels with the largest variance, in every frame of a test image.

    What differs, the last one, is method - baseline, ten times over, about mid-grey. UserError for a frame that can't
    be read.
    """
    titles = {"target": "target", "input": "input", "baseline": "before pruning", method: "after pruning"}
    pixels = {name: _frame(frames / f"{name}.png") for name in titles}
    for name, frame in pixels.items():
        if frame.shape != pixels["target"].shape:
            path, shapes = frames / f"{name}.png", (frame.shape, pixels["target"].shape)
            raise UserError(f"{path} has other sides than target.png, {shapes[0]} and {shapes[1]}; {again(path)}")
    difference = pixels[method].astype(np.int16) - pixels["baseline"]
    pixels["difference"] = (128 + 10 * difference).clip(0, 255).astype(np.uint8)
    titles["difference"] = "the change, ×10"
    side = min(side, *pixels["target"].shape[:2])
    top, left = busiest(pixels["target"].mean(axis=2), side)
    return [Crop(title, pixels[name][top : top + side, left : left + side]) for name, title in titles.items()]


def sample(frames: Path, method: str, side: int, output: Path) -> None:
    """The crops side by side with their titles, each pixel shown as 3 x 3."""
    shown = crops(frames, method, side)
    zoomed = shown[0].pixels.shape[0] * ZOOM
    width, height = len(shown) * (zoomed + GAP) - GAP, zoomed + LABEL
    figure = blank((width / 100, height / 100), layout=None, dpi=100)
    for number, crop in enumerate(shown):
        view = crop.pixels.repeat(ZOOM, 0).repeat(ZOOM, 1)
        figure.figimage(view, xo=number * (zoomed + GAP), yo=0)
        x = (number * (zoomed + GAP) + zoomed / 2) / width
        figure.text(x, 1 - LABEL / 2 / height, crop.title, ha="center", va="center", fontsize=10)
    save(figure, output)


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _frame(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        content = path.read_bytes() if path.is_file() or not path.exists() else b""  # a pipe would be waited for
    except OSError as error:
        raise UserError(f"{path} can't be read as an image: {error.strerror}; {first(path)}") from None
    try:
        with Image.open(io.BytesIO(content)) as image:
            if (image.format, image.mode) == ("PNG", "RGB"):
                return np.asarray(image)
        reason = "it isn't a PNG of RGB"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        reason = "it is damaged"
    raise UserError(f"{path} can't be read as an image: {reason}; {again(path)}")
