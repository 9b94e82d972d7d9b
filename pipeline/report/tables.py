"""The report's main tables, for people and as CSV, from the files in results/ alone. Changes: plus is better."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import config, records
from pipeline.evaluation import metrics
from pipeline.evaluation.solutions import REFERENCES
from pipeline.records import COSTS

RESAMPLES = 10_000  # of the validation images; of the test images it is evaluate.bootstrap
INPUT = {"super_resolution": "bicubic", "low_light": "amplified input", "restoration": "input"}
PROTOCOL = """\
`baseline` is the network as trained; `control` is the baseline trained on at least as long as a pruned network, with
nothing removed. Changes are a solution's PSNR minus that of what it is compared with: plus is better. The gate looks at
the validation images: against {reference} it {limit} dB. Changes are paired over images; brackets
hold the bootstrap's 95% interval. PSNR and SSIM: clamped, rounded to 8 bit, RGB, super-resolution cropped by
scale + 6 pixels; SSIM is scikit-image's
`structural_similarity(channel_axis=-1, data_range=1.0)`.{luma}"""
LUMA = """ The figures of {0} are of luma
alone, on every test set (BT.601; 16 to 235 in super-resolution, else 0 to 255): rounded to 8 bit, cropped by scale
pixels in super-resolution, SSIM with Wang et al.'s 11×11 Gaussian window. Pictures have the input's colours, enlarged
bicubically."""
SYNTHETIC = """ The images of {0} are *synthetic low light* made of photographs,
not the SID data set."""
SET_NOTES = """\
Extra test sets: means over the images. RGB as above. Y: BT.601 luma (16 to 235) of the images rounded to 8 bit, cropped
by scale pixels in super-resolution, SSIM with Wang et al.'s 11×11 Gaussian window."""


def rows(results: Path, network: str, methods: Sequence[str], task: str) -> list[dict[str, Any]]:
    """One row for each solution of a network: input, baseline, control and methods."""
    measured = records.solutions(results, network, methods)
    baseline, *_, control = records.control(results, network)
    references, table = {"baseline": baseline, "control": control}, []
    for solution in ("input", "baseline", "control", *methods):
        row: dict[str, Any] = {"network": network, "solution": solution, **measured[solution]}
        if solution == "input":
            row["solution"] = INPUT[task]
        elif solution == "control":
            gain = _validation(control, baseline)
            row |= {"psnr_change": gain["mean"], "validation_baseline": gain, "steps": control["steps"]}
        elif solution in methods:
            path = results / "finetune" / network / solution / "metrics.json"
            tuned: records.Tuned = records.read(path, records.Tuned)
            row |= {"psnr_change": tuned["psnr_change"], "steps": tuned["steps"]}
            end = records.ended(results, network, solution, len(baseline["image_psnr"]))
            row |= {f"validation_{name}": _validation(end, other) for name, other in references.items()}
        table.append(row)
    return table


def _validation(first: records.Point, second: records.Point) -> dict[str, Any]:
    """The change of PSNR on the validation images, first - second, as `metrics.Difference`."""
    images = tuple(map(str, range(len(first["image_psnr"]))))
    return asdict(metrics.paired(tuple(first["image_psnr"]), tuple(second["image_psnr"]), images, 0, RESAMPLES))


def markdown(table: list[dict[str, Any]]) -> str:
    """The table for people: quality first, as a phone shows the first columns alone; then costs."""
    header = (
        "| network | solution | test against baseline (dB) | test against control (dB) | PSNR (dB) | SSIM | MAC (%) "
        "| BW (%) | weights (%) | activations (%) | validation against baseline (dB) | validation against control (dB) "
        "| extra steps |"
    )
    lines = [header, "| --- | --- |" + " ---: |" * 11]
    for row in table:
        shares = [
            f"{row[f'{key}_percent']:.1f}" if key in row else "" for key in ("mac", "bw", "weights", "activations")
        ]
        changes = ["" if row["solution"] == other else change(row[f"against_{other}"]) for other in REFERENCES]
        validation = [change(row[key], 4) if (key := f"validation_{other}") in row else "" for other in REFERENCES]
        cells = [row["network"], row["solution"], *changes, f"{row['psnr']:.3f}", f"{row['ssim']:.4f}", *shares]
        lines.append("| " + " | ".join([*cells, *validation, str(row.get("steps", ""))]) + " |")
    return "\n".join(lines) + "\n"


def counted(sizes: dict[str, tuple[int, int]], synthetic: Sequence[str]) -> str:
    """At which `sizes`, input height and width, costs are counted; the networks whose images are `synthetic`."""
    at = "; ".join(f"{network} at {height}×{width} input pixels" for network, (height, width) in sizes.items())
    return f"Costs: {at}.{SYNTHETIC.format(' and '.join(synthetic)) if synthetic else ''}\n"


def protocol(gate: config.Gate, luma: Sequence[str] = ()) -> str:
    """What is compared with what, and how quality is measured; `luma`: networks of one channel."""
    grey = LUMA.format(" and ".join(luma)) if luma else ""
    drop = gate.max_psnr_drop
    limit = f"allows a drop of {drop:g}" if drop >= 0 else f"asks for a gain of {-drop:g}"
    return PROTOCOL.format(reference=gate.reference_name, limit=limit, luma=grey) + "\n"


def set_rows(results: Path, network: str, methods: Sequence[str], task: str) -> list[dict[str, Any]]:
    """One row for each solution of a network on each of its extra test sets."""
    measured = records.sets(results, network, methods)
    return [
        {"network": network, "set": name, "images": figures["images"], **figures[solution]}
        | {"solution": INPUT[task] if solution == "input" else solution}
        for name, figures in measured.items()
        for solution in ("input", "baseline", "control", *methods)
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


def csv(table: list[dict[str, Any]]) -> list[list[Any]]:
    """CSV of the main table, with absolute costs too: MACs and elements. `psnr_change`: of the gate."""
    columns = ["network", "solution", *COSTS, *(f"{key}_percent" for key in COSTS), "psnr", "ssim"]
    columns += ["psnr_change", "steps"]
    differences = [(f"validation_{other}", key) for other in REFERENCES for key in ("mean", "low", "high")]
    differences += [
        (f"against_{other}", key) for other in REFERENCES for key in ("mean", "low", "high", "worst", "worst_name")
    ]
    lines: list[list[Any]] = [[*columns, *(f"{name}_{key}" for name, key in differences)]]
    for row in table:
        cells = [row.get(key, "") for key in columns]
        lines.append([*cells, *(row.get(name, {}).get(key, "") for name, key in differences)])
    return lines


def escaped(name: str) -> str:
    """A file's name as Markdown shows it."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", name)


def signed(change: float) -> str:
    """A change with its sign, to a thousandth: plus is better."""
    return f"{change:+.3f}".replace("-", "−") if abs(change) >= 5e-4 else "0.000"


def short(value: float) -> str:
    """A number of three figures at most, as no measured one here has more: 189.85 is 190, 59.27 is 59.3."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".removesuffix(".")


def change(difference: dict[str, float], digits: int = 3) -> str:
    """A change in dB, with its 95% interval where there is one."""
    interval = "" if single(difference) else f" [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    return f"{difference['mean']:+.{digits}f}{interval}"


def single(difference: dict[str, float]) -> bool:
    """Whether a change is of one image, so that no interval is known. Networks that are one have one, of zero."""
    return difference["low"] == difference["high"] != 0
