"""The quality gate: what an iteration and the final network must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline import config
from pipeline.records import Point


@dataclass(frozen=True)
class Target:
    """The reference's validation quality: of the baseline, or of the control after each number of iterations."""

    psnr: tuple[float, ...]  # dB; the last one holds from there on
    ssim: tuple[float, ...]

    def at(self, iterations: int) -> tuple[float, float]:
        return self.psnr[min(iterations, len(self.psnr) - 1)], self.ssim[min(iterations, len(self.ssim) - 1)]


def targets(reference: Literal["baseline", "control"], points: Sequence[Point]) -> tuple[Target, tuple[float, float]]:
    """What the gate compares with: the iterations' target, and the final network's (PSNR in dB, SSIM).

    points: the control's, as records.control returns them: the baseline, after each iteration, after its fine-tune.
    """
    *iterations, end = points
    if reference == "baseline":
        iterations, end = iterations[:1], iterations[0]
    target = Target(tuple(point["psnr"] for point in iterations), tuple(point["ssim"] for point in iterations))
    return target, (end["psnr"], end["ssim"])


def judge(
    measured: tuple[float, float],
    target: tuple[float, float],
    gate: config.Gate,
    tolerance: tuple[float, float] = (0, 0),
) -> tuple[bool, str]:
    """The gate: whether (PSNR, SSIM) fall below the target by no more than is allowed, and the sentence that says so.

    tolerance: what an iteration may miss the gate by, in dB and SSIM; the fine-tune must make up for it.
    """
    psnr_limit, ssim_limit = gate.max_psnr_drop + tolerance[0], gate.max_ssim_drop + tolerance[1]
    psnr_change, ssim_change = measured[0] - target[0], measured[1] - target[1]
    sentence = f"PSNR {psnr_change:+.4f} dB and SSIM {ssim_change:+.5f} against the {gate.reference}"
    broken = []
    if not target[0] - measured[0] <= psnr_limit:  # also false for NaN
        broken.append(f"PSNR may drop by {psnr_limit:g} dB")
    if not target[1] - measured[1] <= ssim_limit:
        broken.append(f"SSIM may drop by {ssim_limit:g}")
    return not broken, sentence + (f": {' and '.join(broken)}" if broken else "")
