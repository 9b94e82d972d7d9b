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


def study_pictures(folder: Path) -> list[Path]:
    """History, contour, importances and trade-off of a study, from the trials.json and importances.json in `folder`."""
    trials = [trial for trial in read_json(folder / "trials.json") if trial["state"] in ("complete", "pruned")]
    measured = [trial for trial in trials if trial["state"] == "complete"]
    if not measured:
        return []
    ranked = read_json(folder / "importances.json")
    made = {"history": _history(trials), "tradeoff": _tradeoff(measured)}
    keys = sorted(measured[0]["params"], key=lambda key: -ranked.get(key, 0.0))
    if len(keys) > 1:
        made["contour"] = _contour(trials, keys[0], keys[1])
    if ranked:
        made["importances"] = _importances(ranked)
    for name, figure in made.items():
        _save(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in made]


FEASIBLE, INFEASIBLE, GIVEN_UP = "#0072B2", "#D55E00", "#999999"  # and as marks: circle, cross, triangle


def _kinds(trials: list[dict[str, Any]]) -> list[tuple[str, str, str, list[dict[str, Any]]]]:
    """Label, mark, colour and trials of each kind that there is."""
    kinds = [
        ("holds", "o", FEASIBLE, [t for t in trials if t["state"] == "complete" and t["feasible"]]),
        ("loses quality", "x", INFEASIBLE, [t for t in trials if t["state"] == "complete" and not t["feasible"]]),
        ("given up: can't win", "v", GIVEN_UP, [t for t in trials if t["state"] == "pruned"]),
    ]
    return [kind for kind in kinds if kind[3]]


def _history(trials: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for label, mark, colour, found in _kinds(trials):
        axes.plot([t["trial"] for t in found], [100 * t["mac_kept"] for t in found], mark, color=colour, label=label)
    best, steps = None, []
    for trial in sorted(trials, key=lambda t: t["trial"]):
        if trial["state"] == "complete" and trial["feasible"] and (best is None or trial["mac_kept"] < best):
            best = trial["mac_kept"]
        if best is not None:
            steps.append((trial["trial"], 100 * best))
    if steps:
        axes.step(*zip(*steps, strict=True), where="post", color=FEASIBLE, alpha=0.6, label="best that holds")
    axes.set(xlabel="trial", ylabel="MACs kept (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _tradeoff(measured: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for label, mark, colour, found in _kinds(measured):
        axes.plot(
            [100 * t["mac_kept"] for t in found], [t["psnr_drop"] for t in found], mark, color=colour, label=label
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="MACs kept (%)", ylabel="validation PSNR drop (dB)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _contour(trials: list[dict[str, Any]], first: str, second: str) -> Any:
    """MACs kept over two parameters, drawn through the trials' own points; kinds as marks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    points = np.array([(t["params"][first], t["params"][second], 100 * t["mac_kept"]) for t in trials])
    x, y = np.log10(np.maximum(points[:, :2], 1e-300)).T
    spread = len(set(map(tuple, points[:, :2]))) > 3 and np.ptp(x) > 0 and np.ptp(y) > 0
    if spread and np.linalg.matrix_rank(np.c_[x - x[0], y - y[0]]) == 2:
        shades = axes.tricontourf(points[:, 0], points[:, 1], points[:, 2], levels=10, cmap="cividis")
        figure.colorbar(shades, ax=axes, label="MACs kept (%)")
    for label, mark, colour, found in _kinds(trials):
        at = [(t["params"][first], t["params"][second]) for t in found]
        axes.plot(*zip(*at, strict=True), mark, color=colour, markeredgecolor="white" if mark != "x" else colour,
                  label=label)  # fmt: skip
    axes.set(xlabel=first, ylabel=second)
    for axis, values in (("x", points[:, 0]), ("y", points[:, 1])):
        if values.min() > 0 and values.max() > 5 * values.min():
            getattr(axes, f"set_{axis}scale")("log")
    axes.legend(fontsize=8)
    return figure


def _importances(ranked: dict[str, float]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.5 * len(ranked) + 1.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    names = sorted(ranked, key=lambda key: ranked[key])
    axes.barh(names, [ranked[name] for name in names], color=FEASIBLE)
    axes.set(xlabel="importance for the MACs kept (PED-ANOVA)")
    return figure


def _save(figure: Any, output: Path) -> None:
    """Write a figure as PNG; equal data give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(output, buffer.getvalue())
