"""Pictures, made from files in results/; only `save_frames` runs a network, for the stage that may read test images."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.files import read_json, write_bytes

# Okabe and Ito's colour-blind-safe palette: one colour for one solution, everywhere
COLOURS = {
    "baseline": "#000000",
    "original": "#999999",
    "A": "#E69F00",
    "B": "#56B4E9",
    "C": "#009E73",
    "D": "#D55E00",
}


@torch.no_grad()
def save_frames(folder: Path, images: Any, index: int, networks: dict[str, torch.nn.Module]) -> None:
    """Full frames of one test image as PNG: target, input and each network's output."""
    from PIL import Image

    from pipeline.quality import to_8bit

    inputs, target = images.pair(index)
    frames = {"target": target, "input": images.reference(index)}
    frames |= {name: network(inputs) for name, network in networks.items()}
    for name, frame in frames.items():
        pixels = to_8bit(frame).permute(1, 2, 0).to(torch.uint8).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png", optimize=True)
        write_bytes(folder / f"{name}.png", buffer.getvalue())


def side_by_side(frames: Path, output: Path, method: str, crop: int) -> None:
    """Target, input, baseline and a method's output, side by side, each pixel shown as 3 x 3.

    The crop is the target's window of `crop` pixels with the largest variance.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    names = {"target": "target", "input": "input", "baseline": "baseline", method: f"method {method}"}
    pixels = {name: np.asarray(Image.open(frames / f"{name}.png")) for name in names}
    side = min(crop, *pixels["target"].shape[:2])
    top, left = _busiest(pixels["target"].mean(axis=2), side)
    zoom, gap, label = 3, 6, 26  # screen pixels
    width, height = len(names) * (side * zoom + gap) - gap, side * zoom + label
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    for number, (name, title) in enumerate(names.items()):
        view = pixels[name][top : top + side, left : left + side].repeat(zoom, 0).repeat(zoom, 1)
        figure.figimage(view, xo=number * (side * zoom + gap), yo=0)
        x = (number * (side * zoom + gap) + side * zoom / 2) / width
        figure.text(x, 1 - label / 2 / height, title, ha="center", va="center", fontsize=10)
    _save(figure, output)


def _busiest(luminance: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the window with the largest variance, on a grid of 8 pixels."""
    height, width = luminance.shape
    places = [(y, x) for y in range(0, height - side + 1, 8) for x in range(0, width - side + 1, 8)]
    return max(places, key=lambda at: luminance[at[0] : at[0] + side, at[1] : at[1] + side].var())


def training_curves(results: Path, network: str, output: Path) -> None:
    """Validation PSNR of the baseline while it was trained, and of the control's training after it."""
    from matplotlib.figure import Figure

    with open(results / "train" / network / "curve.csv", encoding="utf-8") as file:
        points = [(int(row["step"]), float(row["psnr"])) for row in csv.DictReader(file)]
    control = read_json(results / "control" / network / "curve.json")
    control.append(read_json(results / "control" / network / "metrics.json"))
    start = points[-1][0]
    figure = Figure(figsize=(7, 3.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), "o-", color=COLOURS["baseline"], label="baseline", markersize=3)
    after = [(start + point["steps"], point["psnr"]) for point in control]
    axes.plot(
        *zip(*after, strict=True), "s-", color=COLOURS["original"], label="control (nothing removed)", markersize=3
    )
    gain = control[-1]["psnr"] - control[0]["psnr"]
    axes.set(xlabel="training steps", ylabel="validation PSNR (dB)")
    axes.set_title(f"{network}: the control gains {gain:+.3f} dB")
    best = max(psnr for _, psnr in points + after)
    low = min(psnr for _, psnr in points[len(points) // 4 :])
    axes.set_ylim(low - 0.1 * (best - low) - 0.01, best + 0.1 * (best - low) + 0.01)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, output)


def _save(figure: Any, output: Path) -> None:
    """Write a figure as PNG; equal data give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(output, buffer.getvalue())
