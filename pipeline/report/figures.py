"""The report's charts, drawn from files in results/ alone. A phone shows them whole, three quarters as large."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline import records
from pipeline.files import write_bytes

# Okabe and Ito's colour-blind-safe palette: one colour for one solution, everywhere
COLOURS = {
    "baseline": "#000000",
    "control": "#999999",
    "A": "#E69F00",
    "B": "#56B4E9",
    "C": "#009E73",
    "D": "#D55E00",
}
OTHERS = ("#CC79A7", "#0072B2", "#F0E442")  # of methods with other names, and of coupled groups
NUMBERED = 9  # iterations, above which a map of thresholds has no room for its numbers
WIDTH = 4.8  # inches at 100 pixels of the page, of every chart: a phone has three quarters of that


def blank(size: tuple[float, float], layout: Literal["constrained"] | None = "constrained", dpi: int = 160) -> Any:
    """An empty figure of `size` inches at `dpi` pixels each: more than the page shows, for screens that have them."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=dpi, layout=layout)


def styled() -> AbstractContextManager[None]:
    """Charts that are drawn within have the report's sizes of letters."""
    import matplotlib

    return matplotlib.rc_context(
        {"font.size": 8.0, "axes.titlesize": 9.0, "legend.fontsize": 8.0, "figure.titlesize": 9.0}  # points
    )


def plain(names: Iterable[str]) -> list[str]:
    """Names as labels: between two $ matplotlib would read mathematics."""
    return [name.replace("$", r"\$") for name in names]


def training_curves(results: Path, network: str, output: Path) -> None:
    """Validation PSNR of the baseline while it was trained, and of the control's training after it."""
    rows = records.rows(results / "train" / network / "curve.csv", records.CurveRow)
    points = [(row["step"], row["psnr"]) for row in rows]
    control = records.control(results, network)
    start = points[-1][0]
    figure = blank((WIDTH, 2.9))
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), "o-", color=COLOURS["baseline"], label="baseline", markersize=3)
    after = [(start + point["steps"], point["psnr"]) for point in control]
    axes.plot(
        *zip(*after, strict=True), "s-", color=COLOURS["control"], label="control (nothing removed)", markersize=3
    )
    gain = control[-1]["psnr"] - control[0]["psnr"]
    axes.set(xlabel="training steps", ylabel="validation PSNR (dB)")
    axes.set_title(f"{network}: the extra training alone gains {gain:+.3f} dB")
    best = max(psnr for _, psnr in points + after)
    low = min(psnr for _, psnr in points[len(points) // 4 :])
    axes.set_ylim(low - 0.1 * (best - low) - 0.01, best + 0.1 * (best - low) + 0.01)
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, output)


def architecture(results: Path, network: str, size: tuple[int, int], output: Path) -> None:
    """MAC (at an input of `size`, height and width), weights and MAC/weight of each layer before pruning.

    From `analyze`: layers.csv and groups.json. Layers of one coupled group share a letter and a colour; one whose
    outputs no other layer shares is grey; one that isn't pruned at all (the network's output, or frozen) is hatched.
    """
    layers, groups = records.layers(results, network), records.groups(results, network)["groups"]
    shared = [group for group in groups if len(group["producers"]) > 1]
    colours = {layer: OTHERS[n % len(OTHERS)] for n, group in enumerate(shared) for layer in group["producers"]}
    letters = {layer: _letter(n) for n, group in enumerate(shared) for layer in group["producers"]}
    prunable = {layer for group in groups for layer in group["producers"]}
    names = [row["layer"] for row in layers]
    figure = blank((WIDTH, 1.3 + 0.17 * len(names)))
    panels = figure.subplots(1, 3, sharey=True)
    columns = {
        "MAC (10⁹)": [row["mac"] / 1e9 for row in layers],
        "weights (10³)": [row["weights"] / 1e3 for row in layers],
        "MAC/weight (10³)": [row["mac_per_weight"] / 1e3 for row in layers],
    }
    for axes, (title, values) in zip(panels, columns.items(), strict=True):
        bars = axes.barh(plain(names), values, color=[colours.get(name, "0.6") for name in names])
        for bar, name in zip(bars, names, strict=True):
            if name not in prunable:
                bar.set_hatch("///")
            axes.annotate(letters.get(name, ""), (bar.get_width(), bar.get_y() + bar.get_height() / 2), (2, 0),
                          textcoords="offset points", va="center", fontsize=6)  # fmt: skip
        axes.margins(x=0.15)  # for the letters
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=3)
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    panels[0].tick_params(axis="y", labelsize=7)
    figure.suptitle(
        f"{network} before pruning, input {size[0]}×{size[1]}; hatched: never pruned\n{_groups_in_words(shared)}",
        fontsize=8,
    )
    save(figure, output)


def _letter(number: int) -> str:
    """a to z, then a1 to z1 and so on."""
    return chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")


def _groups_in_words(shared: list[records.Group]) -> str:
    if not shared:
        return "no layers share their channels"
    first = [
        f"{_letter(n)} {len(group['producers'])} layers × {group['channels']}" for n, group in enumerate(shared[:2])
    ]
    return f"shared channels: {', '.join(first)}{', …' if len(shared) > 2 else ''}"


def widths(results: Path, network: str, methods: Sequence[str], output: Path) -> None:
    """Output channels kept and pruned in each layer by each method, from `evaluate`'s widths.json."""
    rows, channels = records.widths(results, network, methods)
    names = [row["layer"] for row in rows]  # in the order of the network
    across = min(2, len(methods))
    down = -(-len(methods) // across)
    figure = blank((WIDTH, down * (0.9 + 0.17 * len(names)) + 0.2))
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes in panels[len(methods) :]:
        axes.set_visible(False)
    for axes, method in zip(panels, methods, strict=False):
        kept = [channels[method][name] for name in names]
        axes.barh(plain(names), [channels["baseline"][name] for name in names], color="0.85", label="pruned")
        axes.barh(plain(names), kept, color=colour(method), label="kept")
        for place, (name, count) in enumerate(zip(names, kept, strict=True)):
            before = channels["baseline"][name]
            axes.text(before, place, f" {count}/{before}", va="center", fontsize=6)
        pruned = sum(channels["baseline"].values()) - sum(kept)
        axes.set(xlabel="output channels", title=f"{method}: {pruned} of {sum(channels['baseline'].values())} pruned")
        axes.set_xlim(0, 1.4 * max(channels["baseline"].values()))  # room for the longest label
    panels[0].invert_yaxis()
    for axes in panels:
        axes.tick_params(axis="y", labelsize=7)
    save(figure, output)


def path(results: Path, network: str, methods: Sequence[str], limit: float, output: Path) -> None:
    """Validation PSNR and MACs by iteration, accepted and rejected, for each method, from `prune`'s path.csv.

    limit: dB that an iteration may lose until the fine-tune. A ring is where the network lies that the fine-tune
    delivered: on an iteration, or between two of them.
    """
    figure = blank((WIDTH, 4.6))
    quality, cost = figure.subplots(2, 1, sharex=True)
    # the first ones larger, so that they show behind equal ones
    for size, method in zip(range(2 * len(methods) + 2, 2, -2), methods, strict=True):
        rows, delivered = records.path_of(results, network, method)
        shares = [100 * row["mac"] / rows[0]["mac"] for row in rows]
        good = [number for number, row in enumerate(rows) if row["verdict"] == "accepted"]
        bad = [number for number in range(len(rows)) if number not in good]
        for axes, values in ((quality, [row["psnr_change"] for row in rows]), (cost, shares)):
            axes.plot(good, [values[n] for n in good], "o-", color=colour(method), markersize=size, label=method)
            axes.plot(bad, [values[n] for n in bad], "x", color=colour(method), markersize=7)
            smaller = [number for number in bad if number > good[-1] and shares[number] < shares[good[-1]]]
            between = good + smaller[:1] if delivered > good[-1] else good
            at = np.interp(delivered, between, [values[n] for n in between])
            axes.plot([delivered], [at], "o", color=colour(method), markersize=size + 8, fillstyle="none")
    quality.axhline(0, color="black", linewidth=0.8)
    quality.axhline(-limit, color="black", linewidth=0.8, linestyle="--")
    quality.set(ylabel="validation PSNR change (dB)")
    cost.set(xlabel="iteration", ylabel="MACs kept (%)")
    for axes in (quality, cost):
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", integer=True)
    quality.legend()
    figure.suptitle(f"{network}: dots accepted, crosses rejected, rings delivered; dashed: the limit", fontsize=8)
    save(figure, output)


def thresholds(results: Path, network: str, method: str, output: Path) -> None:
    """The threshold of each channel group (a row) in each iteration (a column), from the log of `prune`."""
    from pipeline.pruning.iterations import read_log

    log = [entry for entry in read_log(results / "prune" / network / method / "log.json") if entry.thresholds]
    names = list(dict.fromkeys(name for entry in log for name in entry.thresholds))
    values = np.array([[entry.thresholds.get(name, np.nan) for entry in log] for name in names], dtype=float)
    figure = blank((WIDTH, 1.5 + 0.2 * max(4, len(names))))
    axes = figure.subplots()
    axes.set_title(f"{network}, {method}: thresholds by channel group")
    axes.set(xlabel="iteration")
    bar = figure.colorbar(axes.imshow(values, cmap="cividis", aspect="auto"), orientation="horizontal", aspect=40)
    bar.set_label("threshold of importance")
    every = -(-len(log) // 20)  # at most twenty numbers below the map
    axes.set_xticks(range(0, len(log), every), [entry.number for entry in log[::every]])
    axes.set_yticks(range(len(names)), plain(names), fontsize=7)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values) if len(log) <= NUMBERED else ():
        tone = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=tone)
    save(figure, output)


def tradeoff(rows: list[dict[str, Any]], network: str, output: Path) -> None:
    """Change of the test PSNR over the MACs kept, a mark for each method; baseline and control as lines."""
    mine = [row for row in rows if row["network"] == network and "mac_percent" in row]
    figure = blank((WIDTH, 2.7))
    axes = figure.subplots()
    for number, row in enumerate(mine):
        change, name = row["against_baseline"], row["solution"]
        if name in ("baseline", "control"):
            style = "-" if name == "baseline" else "--"
            axes.axhline(change["mean"], color=colour(name), linewidth=1.2, linestyle=style, label=name)
            continue
        bars = [[change["mean"] - change["low"]], [change["high"] - change["mean"]]]
        axes.errorbar(row["mac_percent"], change["mean"], yerr=bars, color=colour(name), capsize=3, fmt="D",
                      markersize=max(5, 12 - number), label=f"method {name}")  # fmt: skip
    axes.set_xlim(0, 102)
    axes.set(xlabel="MACs kept (%): further left is cheaper", ylabel="PSNR change (dB): up is better")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, output)


def layer_times(results: Path, network: str, method: str, output: Path) -> None:
    """Time of each layer, baseline and pruned, and the shares of time and MACs that it keeps, from `latency`."""
    measured = records.latency(results, network, method)
    baseline, own = ([row for row in measured["layers"] if row["network"] == name] for name in ("baseline", method))
    names = plain(row["layer"] for row in baseline)
    figure = blank((WIDTH, 1.2 + 0.17 * len(names)))
    spent, kept = figure.subplots(1, 2, sharey=True)
    spent.barh(names, [1e3 * row["seconds"] for row in baseline], color="0.85", label="baseline")
    spent.barh(names, [1e3 * row["seconds"] for row in own], height=0.4, color=colour(method), label=method)
    spent.set(xlabel=f"ms, {measured['side']}×{measured['side']} input pixels")
    for layer, row, before in zip(names, own, baseline, strict=True):
        time = 100 * row["ratio"]
        if "mac" not in row:
            kept.plot(time, layer, "o", color=colour(method))
            continue
        mac = 100 * row["mac"] / before["mac"]
        kept.plot([mac, time], [layer, layer], color="0.7", linewidth=1, zorder=1)
        kept.plot(mac, layer, "|", color="black", markersize=9, markeredgewidth=2)
        kept.plot(time, layer, "o", color=colour(method))
    kept.plot([], [], "|", color="black", markersize=9, markeredgewidth=2, label="MACs")
    kept.plot([], [], "o", color=colour(method), label="time")
    kept.axvline(100, color="black", linewidth=0.8)
    kept.set(xlabel="kept (%)")
    kept.set_xlim(left=0)
    for axes in (spent, kept):
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize=7)
    spent.invert_yaxis()
    spent.tick_params(axis="y", labelsize=7)
    save(figure, output)


def colour(solution: str) -> str:
    """The solution's own colour; methods of the user's own get further ones by their names."""
    return COLOURS.get(solution) or OTHERS[zlib.crc32(solution.encode()) % len(OTHERS)]


def save(figure: Any, output: Path) -> None:
    """Write a figure as PNG; equal data give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(output, buffer.getvalue())
