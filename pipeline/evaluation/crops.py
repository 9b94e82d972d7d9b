"""The test images that the report shows: which ones, the crop of each, and the files that their frames are kept in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.files import write_bytes

SAMPLES = ("largest loss", "median", "largest gain")  # the test images that are shown, and why each one is


@torch.no_grad()
def save_frames(folder: Path, images: Any, index: int, networks: dict[str, torch.nn.Module]) -> None:
    """Full frames of one test image as PNG: target, input and each network's output."""
    from PIL import Image

    from pipeline.evaluation.metrics import to_8bit

    inputs, target = images.pair(index)
    frames = {"target": target, "input": images.reference(index)}
    frames |= {name: network(inputs.clone()) for name, network in networks.items()}  # a forward may change its input
    for name, frame in frames.items():
        pixels = to_8bit(images.picture(index, frame)).permute(1, 2, 0).to(torch.uint8).cpu().numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png", optimize=True)
        write_bytes(folder / f"{name}.png", buffer.getvalue())


@torch.no_grad()
def restored(images: Any, index: int, network: torch.nn.Module, side: int) -> np.ndarray:
    """A network's output on one image as uint8 [h, w, 3]: the target's window of `side` pixels with most variance."""
    from pipeline.evaluation.metrics import to_8bit

    inputs, target = images.pair(index)
    frames = (images.picture(index, frame) for frame in (target, network(inputs)))
    target, output = (to_8bit(frame).permute(1, 2, 0).cpu().numpy() for frame in frames)
    side = min(side, *target.shape[:2])
    top, left = busiest(target.mean(axis=2), side)
    return output[top : top + side, left : left + side].astype(np.uint8)


def busiest(luminance: np.ndarray, side: int) -> tuple[int, int]:
    """Top and left of the window with the largest variance, on a grid of 8 pixels."""
    height, width = luminance.shape
    places = [(y, x) for y in range(0, height - side + 1, 8) for x in range(0, width - side + 1, 8)]
    return max(places, key=lambda at: luminance[at[0] : at[0] + side, at[1] : at[1] + side].var())


def samples(changes: dict[str, float]) -> dict[str, str]:
    """Which test images are shown, by the reason in SAMPLES: where the method loses most against the baseline, where
    its PSNR change (dB, by image; plus is better) is the median, and where it gains most. An image that several reasons
    choose is shown once, under the first of them."""
    ranked = sorted(changes, key=lambda name: (-changes[name], name))  # the largest gain first
    names = dict(zip(SAMPLES, (ranked[-1], ranked[len(ranked) // 2], ranked[0]), strict=True))
    return {reason: name for reason, name in names.items() if reason == next(r for r, n in names.items() if n == name)}
