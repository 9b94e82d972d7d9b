"""Figures of an Optuna study, from its trials.json and importances.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline import records
from pipeline.report.figures import save


def draw(folder: Path) -> list[Path]:
    """History, contour, importances and trade-off of a study, from the trials.json and importances.json in `folder`."""
    trials = records.trials(folder)
    measured = [trial for trial in trials if trial["state"] == "complete"]
    if not measured:
        return []
    ranked: dict[str, float] = records.read(folder / "importances.json", dict[records.Text, records.Number])
    figures = {"history": _history(trials), "tradeoff": _tradeoff(measured)}
    keys = sorted(measured[0]["params"], key=lambda key: -ranked.get(key, 0.0))
    if len(keys) > 1:
        figures["contour"] = _contour(trials, keys[0], keys[1])
    if ranked:
        figures["importances"] = _importances(ranked)
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


FEASIBLE, INFEASIBLE, GIVEN_UP = "#0072B2", "#D55E00", "#999999"  # and as marks: circle, cross, triangle


def _kinds(trials: list[records.Trial]) -> list[tuple[str, str, str, list[records.Trial]]]:
    """Label, mark, colour and trials of each kind that there is."""
    kinds = [
        ("holds", "o", FEASIBLE, [t for t in trials if t["state"] == "complete" and t["feasible"]]),
        ("loses quality", "x", INFEASIBLE, [t for t in trials if t["state"] == "complete" and not t["feasible"]]),
        ("given up: can't win", "v", GIVEN_UP, [t for t in trials if t["state"] == "pruned"]),
    ]
    return [kind for kind in kinds if kind[3]]


def _history(trials: list[records.Trial]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for label, mark, colour, those in _kinds(trials):
        axes.plot([t["trial"] for t in those], [t["mac_percent"] for t in those], mark, color=colour, label=label)
    best, steps = None, []
    for trial in sorted(trials, key=lambda t: t["trial"]):
        if trial["state"] == "complete" and trial["feasible"] and (best is None or trial["mac_percent"] < best):
            best = trial["mac_percent"]
        if best is not None:
            steps.append((trial["trial"], best))
    if steps:
        axes.step(*zip(*steps, strict=True), where="post", color=FEASIBLE, alpha=0.6, label="best that holds")
    axes.set(xlabel="trial", ylabel="MACs kept (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _tradeoff(measured: list[records.Trial]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for label, mark, colour, those in _kinds(measured):
        axes.plot([t["mac_percent"] for t in those], [t["psnr_change"] for t in those], mark, color=colour, label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="MACs kept (%)", ylabel="validation PSNR change (dB), plus is better")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _contour(trials: list[records.Trial], first: str, second: str) -> Any:
    """MACs kept over two parameters, drawn through the trials' own points; kinds as marks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    points = np.array([(t["params"][first], t["params"][second], t["mac_percent"]) for t in trials])
    x, y = np.log10(np.maximum(points[:, :2], 1e-300)).T
    spread = len(set(map(tuple, points[:, :2]))) > 3 and np.ptp(x) > 0 and np.ptp(y) > 0
    if spread and np.linalg.matrix_rank(np.c_[x - x[0], y - y[0]]) == 2:
        shades = axes.tricontourf(points[:, 0], points[:, 1], points[:, 2], levels=10, cmap="cividis")
        figure.colorbar(shades, ax=axes, label="MACs kept (%)")
    for label, mark, colour, those in _kinds(trials):
        at = [(t["params"][first], t["params"][second]) for t in those]
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
