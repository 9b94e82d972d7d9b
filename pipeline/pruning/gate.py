"""The quality gate: what an iteration and the final network must hold."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import config


@dataclass(frozen=True)
class Target:
    """Validation quality to hold: of the baseline, or of the control after each number of iterations."""

    psnr: tuple[float, ...]  # dB; the last one holds from there on
    ssim: tuple[float, ...]

    def at(self, iterations: int) -> tuple[float, float]:
        return self.psnr[min(iterations, len(self.psnr) - 1)], self.ssim[min(iterations, len(self.ssim) - 1)]


def judge(
    measured: tuple[float, float],
    target: tuple[float, float],
    gate: config.Gate,
    tolerance: tuple[float, float] = (0, 0),
) -> tuple[bool, str]:
    """The gate: whether (PSNR, SSIM) hold the target's less the allowed drops, and the sentence that says so.

    tolerance: what may be missing beyond that until the fine-tune pays it back, in dB and SSIM.
    """
    psnr_limit, ssim_limit = gate.max_psnr_drop + tolerance[0], gate.max_ssim_drop + tolerance[1]
    psnr_drop, ssim_drop = target[0] - measured[0], target[1] - measured[1]
    text = (
        f"PSNR {measured[0] - target[0]:+.4f} dB and SSIM {measured[1] - target[1]:+.5f} against the {gate.reference}"
    )
    faults = []
    if not psnr_drop <= psnr_limit:  # also false for NaN
        faults.append(f"PSNR may drop by {psnr_limit:g} dB")
    if not ssim_drop <= ssim_limit:
        faults.append(f"SSIM may drop by {ssim_limit:g}")
    return not faults, text + (f": {' and '.join(faults)}" if faults else "")
