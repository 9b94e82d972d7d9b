"""The quality gate: what an iteration and the final network must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline import config
from pipeline.evaluation.metrics import Quality
from pipeline.records import Point

RESAMPLES = 10_000  # of the bootstrap that `confidence` asks for


@dataclass(frozen=True)
class Target:
    """The reference's validation quality after each number of iterations; the last entry holds from there on."""

    after: tuple[Quality, ...]

    def at(self, iterations: int) -> Quality:
        return self.after[min(iterations, len(self.after) - 1)]


def targets(reference: Literal["best", "baseline", "control"], points: Sequence[Point]) -> tuple[Target, Quality]:
    """What the gate compares with: the iterations' target, and the final network's.

    `best`: the better of baseline and control at each point, PSNR and SSIM each by itself.
    points: the control's, as records.control returns them: the baseline, after each iteration, after its fine-tune.
    """
    *iterations, end = [_quality(point) for point in points]
    baseline = iterations[0]
    if reference == "baseline":
        iterations, end = [baseline], baseline
    elif reference == "best":
        iterations, end = [better(baseline, one) for one in iterations], better(baseline, end)
    return Target(tuple(iterations)), end


def better(first: Quality, second: Quality) -> Quality:
    """The images' PSNR of the one that has more of it on average, and the SSIM likewise."""
    psnr = max(first, second, key=lambda one: one.mean_psnr).psnr
    return Quality(first.names, psnr, max(first, second, key=lambda one: one.mean_ssim).ssim)


def judge(
    measured: Quality, target: Quality, gate: config.Gate, tolerance: tuple[float, float] = (0, 0)
) -> tuple[bool, str]:
    """The gate: whether PSNR and SSIM fall below the target by no more than is allowed, and the sentence that says so.

    tolerance: what an iteration may miss the gate by, in dB and SSIM; the fine-tune must make up for it. With
    `gate.confidence` the lower end of the change's one-sided paired bootstrap interval over images must hold, not the
    mean alone: a test of non-inferiority.
    """
    sentence = (
        f"PSNR {measured.mean_psnr - target.mean_psnr:+.4f} dB and SSIM {measured.mean_ssim - target.mean_ssim:+.5f} "
        f"against {gate.reference_name}"
    )
    broken = []
    limits = gate.max_psnr_drop + tolerance[0], gate.max_ssim_drop + tolerance[1]
    for name, unit, change, limit in zip(
        ("PSNR", "SSIM"), (" dB", ""), changes(measured, target, gate.confidence), limits, strict=True
    ):
        if gate.confidence is not None:
            sentence += f"; {name} at {100 * gate.confidence:g}% confidence {change:+.4g}{unit} or more"
        if not change >= -limit:  # also false for NaN
            broken.append(f"{name} {f'may drop by {limit:g}' if limit >= 0 else f'must rise by {-limit:g}'}{unit}")
    return not broken, sentence + (f": {' and '.join(broken)}" if broken else "")


def changes(measured: Quality, target: Quality, confidence: float | None) -> tuple[float, float]:
    """What must hold the limits: the mean change of PSNR in dB and of SSIM; with a confidence, the lower ends."""
    if confidence is None:
        return measured.mean_psnr - target.mean_psnr, measured.mean_ssim - target.mean_ssim
    return lowest(measured.psnr, target.psnr, confidence), lowest(measured.ssim, target.ssim, confidence)


def lowest(ours: Sequence[float], theirs: Sequence[float], confidence: float) -> float:
    """The lower end of the one-sided percentile bootstrap interval (Efron, 1979) of the mean change over images."""
    change = np.asarray(ours) - np.asarray(theirs)
    draws = np.random.default_rng(0).integers(0, len(change), (RESAMPLES, len(change)))
    return float(np.percentile(change[draws].mean(axis=1), 100 * (1 - confidence)))


def _quality(point: Point) -> Quality:
    images = tuple(point["image_psnr"]), tuple(point["image_ssim"])
    return Quality(tuple(f"{number}" for number in range(len(images[0]))), *images)
