"""Crops of restored test images: which images, where, and how they are kept for the report."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.files import write_bytes

RULES = ("largest loss", "median", "largest gain")  # by which test images are looked at closer


@torch.no_grad()
def save_frames(folder: Path, images: Any, index: int, networks: dict[str, torch.nn.Module]) -> None:
    """Full frames of one test image as PNG: target, input and each network's output."""
    from PIL import Image

    from pipeline.evaluation.metrics import to_8bit

    inputs, target = images.pair(index)
    frames = {"target": target, "input": images.reference(index)}
    frames |= {name: network(inputs.clone()) for name, network in networks.items()}  # a forward may change its input
    for name, frame in frames.items():
        pixels = to_8bit(frame).permute(1, 2, 0).to(torch.uint8).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png", optimize=True)
        write_bytes(folder / f"{name}.png", buffer.getvalue())


@torch.no_grad()
def restored(images: Any, index: int, network: torch.nn.Module, side: int) -> np.ndarray:
    """A network's output on one image as uint8 [h, w, 3]: the target's window of `side` pixels with most variance."""
    from pipeline.evaluation.metrics import to_8bit

    inputs, target = images.pair(index)
    target, output = (to_8bit(frame).permute(1, 2, 0).cpu().numpy() for frame in (target, network(inputs)))
    side = min(side, *target.shape[:2])
    top, left = _busiest(target.mean(axis=2), side)
    return output[top : top + side, left : left + side].astype(np.uint8)


def _busiest(luminance: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the window with the largest variance, on a grid of 8 pixels."""
    height, width = luminance.shape
    places = [(y, x) for y in range(0, height - side + 1, 8) for x in range(0, width - side + 1, 8)]
    return max(places, key=lambda at: luminance[at[0] : at[0] + side, at[1] : at[1] + side].var())


def chosen(drops: dict[str, float]) -> dict[str, str]:
    """Which test images are looked at closer, by rule: where the method loses most against the baseline, where its
    PSNR drop (dB, by image) is the median, and where it gains most. An image stands once, under the first of them."""
    ranked = sorted(drops, key=lambda name: (drops[name], name))
    rules = dict(zip(RULES, (ranked[-1], ranked[len(ranked) // 2], ranked[0]), strict=True))
    return {rule: name for rule, name in rules.items() if rule == next(r for r, n in rules.items() if n == name)}
