"""The rows of benchmarks/race.py: one for each training, in a file, and the tables and the picture made of them."""

from __future__ import annotations

import csv
import io
import math
import statistics
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from pipeline import records
from pipeline.files import write_text
from pipeline.report import figures


@dataclass(frozen=True)
class Row:
    """One training."""

    variant: str
    seed: int
    teacher: float
    steps: int
    target: float  # % of the baseline's MACs, at most
    mac_percent: float  # of the baseline's; this and the next three are NaN where it failed
    psnr_cut: float  # dB, validation, before any training; NaN from scratch
    psnr: float  # dB, validation, after it
    seconds: float  # of the training
    baseline: str  # digest of its file
    failure: str = ""  # why there are no figures


@dataclass(frozen=True)
class Standings:
    """The rows of one training at one target or at several, and what they are compared with."""

    rows: list[Row]
    baseline: float  # its PSNR, dB
    controls: dict[int, float]  # seed -> the control's PSNR, dB

    def drop(self, row: Row) -> float:
        """dB below the better of baseline and control; minus where it is above."""
        return max(self.baseline, self.controls[row.seed]) - row.psnr

    def lines(self) -> dict[str, list[tuple[float, float]]]:
        """Row -> (MACs left in %, drop in dB, median over the seeds) for each target, the fewest MACs first.

        Of rows with more than one target; the control has none.
        """
        found: dict[str, dict[float, list[Row]]] = {}
        for row in self.rows:
            if not row.failure and row.variant != "control" and row.seed in self.controls:
                found.setdefault(row.variant, {}).setdefault(row.target, []).append(row)
        return {
            variant: sorted((own[0].mac_percent, statistics.median(map(self.drop, own))) for own in targets.values())
            for variant, targets in found.items()
            if len(targets) > 1
        }

    def table(self, tuned: records.Tuned | None = None) -> str:
        """Best first, failures last; changes in dB on validation. tuned: D's own result."""
        lines = []
        for variant in dict.fromkeys(row.variant for row in self.rows):
            own = [row for row in self.rows if row.variant == variant and not row.failure]
            if not own:
                failure = next(row.failure for row in self.rows if row.variant == variant)
                lines.append((math.inf, f"| {variant} | | | {failure.replace('|', '/')} | | | 0 |"))
                continue
            changes = sorted(row.psnr - self.baseline for row in own)
            against = [row.psnr - self.controls[row.seed] for row in own if row.seed in self.controls]
            middle, cut = statistics.median(changes), own[0].psnr_cut - self.baseline
            lines.append((-middle, f"| {variant} | {own[0].mac_percent:.1f} | {_change(cut)} | {_change(middle)} "
                          f"| {_change(changes[0])} to {_change(changes[-1])} "
                          f"| {_change(statistics.median(against)) if against else ''} | {len(own)} |"))  # fmt: skip
        if tuned is not None:
            change = tuned["psnr"] - self.baseline
            against = [tuned["psnr"] - statistics.median(self.controls.values())] if self.controls else []
            lines.append((-change, f"| D in iterations | {tuned['mac_percent']:.1f} | | {_change(change)} | "
                          f"| {_change(against[0]) if against else ''} | 1 |"))  # fmt: skip
        return (
            "| row | MACs left (%) | at the cut | after training, against the baseline | range "
            "| against the control | seeds |\n| --- | ---: | ---: | ---: | --- | ---: | ---: |\n"
            + "\n".join(line for _, line in sorted(lines, key=lambda pair: pair[0]))
            + "\n"
        )


def _change(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.4f}"


def no_drop_table(found: dict[str, tuple[list[Row], str]], standings: Standings, highest: float) -> str:
    """found: of each row its smallest network that loses no more than allowed, one a seed, or why there is none.

    highest: MACs in % at which the search began.
    """
    order = sorted(found.items(), key=lambda each: each[1][0][0].mac_percent if each[1][0] else math.inf)
    lines = [
        f"| {name} | {rows[0].mac_percent:.1f} | {-statistics.median(map(standings.drop, rows)):+.4f} |"
        if rows
        else f"| {name} | {failure.replace('|', '/') or f'none of up to {highest:g}% of the MACs'} | |"
        for name, (rows, failure) in order
    ]
    head = "| row | MACs left (%) at no drop | dB there |\n| --- | ---: | ---: |\n"
    return head + "\n".join(lines) + "\n"


def picture(lines: dict[str, list[tuple[float, float]]], allowed: float, title: str, output: Path) -> None:
    """Drop over MACs, one line for each row; drops of more than ten times the allowed dB lie outside."""
    with figures.styled():
        figure = figures.blank((1.5 * figures.WIDTH, 3.6))
        axes = figure.subplots()
        for number, (variant, points) in enumerate(lines.items()):
            axes.plot(*zip(*points, strict=True), marker="osv^Dpx*"[number % 8], markersize=4, linewidth=1,
                      label=figures.plain([variant])[0])  # fmt: skip
        axes.axhline(allowed, color="0.4", linestyle="--", linewidth=0.8)
        axes.annotate(f"allowed: {allowed:g} dB", (1, allowed), (-2, 2), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", va="bottom")  # fmt: skip
        axes.set(xlabel="MACs left (%)", ylabel="drop of validation PSNR (dB)", ylim=(-2 * allowed, 10 * allowed))
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.legend()
        figures.save(figure, output)


def read(path: Path) -> list[Row]:
    """The trainings that are done."""
    if not path.exists():
        return []
    kinds = {"seed": int, "steps": int, "variant": str, "baseline": str, "failure": str}
    with path.open(encoding="utf-8", newline="") as lines:
        return [
            Row(**{key: kinds.get(key, float)(value) for key, value in row.items()}) for row in csv.DictReader(lines)
        ]


def write(path: Path, rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(
        [f"{value:.6g}" if isinstance(value, float) and abs(value) < 20 else f"{value:.4f}" if isinstance(value, float)
         else value for value in astuple(row)]
        for row in rows
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())
