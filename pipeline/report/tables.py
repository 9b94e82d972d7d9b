"""The report's table, from the files in results/ alone."""

from __future__ import annotations

import csv as csv_format
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import config, records
from pipeline.evaluation.metrics import Quality

INPUT = {"super_resolution": "bicubic", "low_light": "amplified input", "restoration": "input"}
NOTES = """\
`baseline` is the network as trained; `original` is the control, which got the training of a pruned network with nothing
removed. Validation drop: against the {reference}, the gate's reference (of `original`: against the baseline); the gate
allows {drop:g} dB. Test drops are paired over images, with a bootstrap 95% interval; negative: better. PSNR and SSIM:
clamped, rounded to 8 bit, RGB, super-resolution cropped by scale + 6 pixels; SSIM is scikit-image's
`structural_similarity(channel_axis=-1, data_range=1.0)`.{synthetic}"""
SYNTHETIC = """ The images of {0} are *synthetic low light* made of photographs,
not the SID data set."""
SET_NOTES = """\
Extra test sets: means over the images. RGB as above. Y: BT.601 luma (16 to 235) of the images rounded to 8 bit, cropped
by scale pixels in super-resolution, SSIM with Wang et al.'s 11×11 Gaussian window."""


def rows(results: Path, network: str, methods: Sequence[str], task: str) -> list[dict[str, Any]]:
    """One row for each solution of a network: input, baseline, control and methods."""
    found = records.solutions(results, network, methods)
    baseline: records.Baseline = records.read(results / "train" / network / "metrics.json", records.Baseline)
    control: records.Point = records.read(results / "control" / network / "metrics.json", records.Point)
    table = []
    for solution in ("input", "baseline", "original", *methods):
        row: dict[str, Any] = {"network": network, "solution": solution, **found[solution]}
        if solution == "input":
            row["solution"] = INPUT[task]
        elif solution == "original":
            row |= {"validation_drop": baseline["psnr"] - control["psnr"], "steps": control["steps"]}
        elif solution in methods:
            path = results / "finetune" / network / solution / "metrics.json"
            tuned: records.Tuned = records.read(path, records.Tuned)
            row |= {"validation_drop": -tuned["psnr_change"], "steps": tuned["steps"]}
        table.append(row)
    return table


def markdown(
    table: list[dict[str, Any]], sizes: dict[str, tuple[int, int]], gate: config.Gate, synthetic: Sequence[str]
) -> str:
    """The table for people. Costs are counted at `sizes`, input height and width; `synthetic` names networks."""
    header = (
        "| network | solution | MAC (%) | weights (%) | activations (%) | BW (%) | PSNR (dB) | SSIM "
        "| validation drop (dB) | test drop against baseline (dB) | against control (dB) | extra steps |"
    )
    lines = [header, "| --- | --- |" + " ---: |" * 10]
    for row in table:
        shares = [f"{row[f'{key}_percent']:.1f}" if key in row else "" for key in _COSTS]
        drops = [_drop(row["against_baseline"]), _drop(row["against_original"])]
        if row["solution"] in ("baseline", "original"):
            drops[["baseline", "original"].index(row["solution"])] = ""
        validation = f"{row['validation_drop']:+.4f}" if "validation_drop" in row else ""
        cells = [row["network"], row["solution"], *shares, f"{row['psnr']:.3f}", f"{row['ssim']:.4f}", validation]
        lines.append("| " + " | ".join([*cells, *drops, str(row.get("steps", ""))]) + " |")
    at = "; ".join(f"{network} at {height}×{width} input pixels" for network, (height, width) in sizes.items())
    light = SYNTHETIC.format(" and ".join(synthetic)) if synthetic else ""
    notes = NOTES.format(reference=gate.reference, drop=gate.max_psnr_drop, synthetic=light)
    return "\n".join(lines) + f"\n\nCosts: {at}.\n\n{notes}\n"


def set_rows(results: Path, network: str, methods: Sequence[str], task: str) -> list[dict[str, Any]]:
    """One row for each solution of a network on each of its extra test sets."""
    found = records.sets(results, network, methods)
    return [
        {"network": network, "set": name, "images": figures["images"], **figures[solution]}
        | {"solution": INPUT[task] if solution == "input" else solution}
        for name, figures in found.items()
        for solution in ("input", "baseline", "original", *methods)
    ]


def sets_markdown(table: list[dict[str, Any]]) -> str:
    """The extra test sets' table; nothing when there are none."""
    if not table:
        return ""
    header = (
        "| network | test set | images | solution | PSNR RGB (dB) | SSIM RGB | PSNR Y (dB) | SSIM Y |",
        "| --- | --- | ---: | --- |" + " ---: |" * 4,
    )
    rows = (
        f"| {row['network']} | {row['set']} | {row['images']} | {row['solution']} | {row['psnr']:.3f} "
        f"| {row['ssim']:.4f} | {row['psnr_y']:.3f} | {row['ssim_y']:.4f} |"
        for row in table
    )
    return "\n" + "\n".join([*header, *rows]) + f"\n\n{SET_NOTES}\n"


def images(scores: dict[str, Quality]) -> str:
    """Every image's figures under every solution, and its PSNR drop against the baseline in dB."""
    text = io.StringIO()
    writer = csv_format.writer(text, lineterminator="\n")  # quotes file names with commas
    writer.writerow(["image", "solution", "psnr", "ssim", "psnr_drop"])
    for solution, score in scores.items():
        for image, psnr, ssim, base in zip(score.names, score.psnr, score.ssim, scores["baseline"].psnr, strict=True):
            writer.writerow([image, solution, f"{psnr:.4f}", f"{ssim:.5f}", f"{base - psnr:.4f}"])
    return text.getvalue()


def csv(table: list[dict[str, Any]]) -> str:
    """The same table for machines: absolute costs too, MACs and elements."""
    columns = ["network", "solution", *_COSTS, *(f"{key}_percent" for key in _COSTS), "psnr", "ssim"]
    columns += ["validation_drop", "steps"]
    differences = [(o, key) for o in ("baseline", "original") for key in ("mean", "low", "high", "worst", "worst_name")]
    text = io.StringIO()
    writer = csv_format.writer(text, lineterminator="\n")  # quotes file names with commas
    writer.writerow([*columns, *(f"against_{other}_{key}" for other, key in differences)])
    for row in table:
        cells = [row.get(key, "") for key in columns]
        writer.writerow([*cells, *(row[f"against_{other}"][key] for other, key in differences)])
    return text.getvalue()


_COSTS = ("mac", "weights", "activations", "bw")


def _drop(difference: dict[str, float]) -> str:
    """A difference (solution - other) as a drop, with its interval."""
    return f"{-difference['mean']:+.3f} [{-difference['high']:+.3f}, {-difference['low']:+.3f}]"
