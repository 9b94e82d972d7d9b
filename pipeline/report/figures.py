"""The report's figures, drawn from files in results/ alone."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import records
from pipeline.errors import UserError
from pipeline.evaluation.crops import busiest
from pipeline.files import again, first, write_bytes

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
NUMBERED = 16  # iterations, above which a map of thresholds has no room for its numbers


def sample(frames: Path, method: str, crop: int, output: Path) -> None:
    """One test image: target, input, baseline, a method's output and what differs, each pixel shown as 3 x 3.

    The crop is the target's window of `crop` pixels with the largest variance. What differs is method - baseline,
    ten times over, about mid-grey.
    """
    names = {"target": "target", "input": "input", "baseline": "baseline", method: f"method {method}"}
    pixels = {name: _frame(frames / f"{name}.png") for name in names}
    for name in names:
        if pixels[name].shape != pixels["target"].shape:
            path, shapes = frames / f"{name}.png", (pixels[name].shape, pixels["target"].shape)
            raise UserError(f"{path} has other sides than target.png, {shapes[0]} and {shapes[1]}; {again(path)}")
    difference = pixels[method].astype(np.int16) - pixels["baseline"]
    pixels["difference"] = (128 + 10 * difference).clip(0, 255).astype(np.uint8)
    names["difference"] = f"({method} − baseline) × 10"
    side = min(crop, *pixels["target"].shape[:2])
    top, left = busiest(pixels["target"].mean(axis=2), side)
    zoom, gap, label = 3, 6, 26  # screen pixels
    width, height = len(names) * (side * zoom + gap) - gap, side * zoom + label
    figure = blank((width / 100, height / 100), layout=None)
    for number, (name, title) in enumerate(names.items()):
        view = pixels[name][top : top + side, left : left + side].repeat(zoom, 0).repeat(zoom, 1)
        figure.figimage(view, xo=number * (side * zoom + gap), yo=0)
        x = (number * (side * zoom + gap) + side * zoom / 2) / width
        figure.text(x, 1 - label / 2 / height, title, ha="center", va="center", fontsize=10)
    save(figure, output)


def _frame(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        content = path.read_bytes() if path.is_file() or not path.exists() else b""  # a pipe would be waited for
    except OSError as error:
        raise UserError(f"{path} can't be read as an image: {error.strerror}; {first(path)}") from None
    try:
        with Image.open(io.BytesIO(content)) as image:
            if (image.format, image.mode) == ("PNG", "RGB"):
                return np.asarray(image)
        reason = "it isn't a PNG of RGB"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        reason = "it is damaged"
    raise UserError(f"{path} can't be read as an image: {reason}; {again(path)}")


def blank(size: tuple[float, float], layout: str | None = "constrained") -> Any:
    """An empty figure of `size` inches at 100 pixels each."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, dpi=100, layout=layout)


def plain(names: Iterable[str]) -> list[str]:
    """Names as labels: between two $ matplotlib would read mathematics."""
    return [name.replace("$", r"\$") for name in names]


def training_curves(results: Path, network: str, output: Path) -> None:
    """Validation PSNR of the baseline while it was trained, and of the control's training after it."""
    rows = records.rows(results / "train" / network / "curve.csv", records.CurveRow)
    points = [(row["step"], row["psnr"]) for row in rows]
    control = records.control(results, network)
    start = points[-1][0]
    figure = blank((7, 3.5))
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), "o-", color=COLOURS["baseline"], label="baseline", markersize=3)
    after = [(start + point["steps"], point["psnr"]) for point in control]
    axes.plot(
        *zip(*after, strict=True), "s-", color=COLOURS["control"], label="control (nothing removed)", markersize=3
    )
    gain = control[-1]["psnr"] - control[0]["psnr"]
    axes.set(xlabel="training steps", ylabel="validation PSNR (dB)")
    axes.set_title(f"{network}: the control gains {gain:+.3f} dB")
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
    figure = blank((9, 1.2 + 0.18 * len(names)))
    panels = figure.subplots(1, 3, sharey=True)
    titles = {"mac": "GMAC", "weights": "thousand weights", "mac_per_weight": "MAC per weight (thousand)"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        scale = 1e9 if key == "mac" else 1e3
        bars = axes.barh(
            plain(names),
            [row[key] / scale for row in layers],
            color=[colours.get(name, "0.6") for name in names],
        )
        for bar, name in zip(bars, names, strict=True):
            if name not in prunable:
                bar.set_hatch("///")
            axes.annotate(letters.get(name, ""), (bar.get_width(), bar.get_y() + bar.get_height() / 2), (3, 0),
                          textcoords="offset points", va="center", fontsize=7)  # fmt: skip
        axes.margins(x=0.08)  # for the letters
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(title)
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    panels[0].tick_params(axis="y", labelsize=7)
    figure.suptitle(
        f"{network}, input {size[0]}×{size[1]}, before pruning: {_groups_in_words(shared)}; hatched: never pruned",
        fontsize=9,
    )
    save(figure, output)


def _letter(number: int) -> str:
    """a to z, then a1 to z1 and so on."""
    return chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")


def _groups_in_words(shared: list[dict[str, Any]]) -> str:
    if not shared:
        return "no layers share their channels"
    first = [
        f"{_letter(n)} {len(group['producers'])} layers × {group['channels']}" for n, group in enumerate(shared[:3])
    ]
    return f"layers that share their channels: {', '.join(first)}{', …' if len(shared) > 3 else ''}"


def widths(results: Path, network: str, methods: Sequence[str], output: Path) -> None:
    """Output channels kept and pruned in each layer by each method, from `evaluate`'s widths.json."""
    rows, channels = records.widths(results, network, methods)
    names = [row["layer"] for row in rows]  # in the order of the network
    figure = blank((2.1 * len(methods) + 1.4, 1.2 + 0.18 * len(names)))
    panels = np.atleast_1d(figure.subplots(1, len(methods), sharey=True))
    for axes, method in zip(panels, methods, strict=True):
        kept = [channels[method][name] for name in names]
        axes.barh(plain(names), [channels["baseline"][name] for name in names], color="0.85", label="pruned")
        axes.barh(plain(names), kept, color=colour(method), label="kept")
        for place, (name, count) in enumerate(zip(names, kept, strict=True)):
            before = channels["baseline"][name]
            axes.text(before, place, f" {count}/{before}", va="center", fontsize=6)
        pruned = sum(channels["baseline"].values()) - sum(kept)
        axes.set(xlabel="output channels", title=f"{method}: {pruned} of {sum(channels['baseline'].values())} pruned")
        axes.title.set_fontsize(9)
        axes.set_xlim(0, 1.4 * max(channels["baseline"].values()))  # room for the longest label
    panels[0].invert_yaxis()
    panels[0].tick_params(axis="y", labelsize=7)
    save(figure, output)


def path(results: Path, network: str, methods: Sequence[str], limit: float, output: Path) -> None:
    """Validation PSNR and MACs by iteration, accepted and rejected, for each method, from `prune`'s path.csv.

    limit: dB that an iteration may lose until the fine-tune. The iteration whose network the fine-tune delivered (the
    last accepted one with its MACs) has a ring.
    """
    figure = blank((9, 3.6))
    quality, cost = figure.subplots(1, 2)
    # the first ones larger, so that they show behind equal ones
    for size, method in zip(range(2 * len(methods) + 2, 2, -2), methods, strict=True):
        rows, delivered = records.path_of(results, network, method)
        shares = [100 * row["mac"] / rows[0]["mac"] for row in rows]
        good = [number for number, row in enumerate(rows) if row["verdict"] == "accepted"]
        bad = [number for number in range(len(rows)) if number not in good]
        for axes, values in ((quality, [row["psnr_change"] for row in rows]), (cost, shares)):
            axes.plot(good, [values[n] for n in good], "o-", color=colour(method), markersize=size, label=method)
            axes.plot(bad, [values[n] for n in bad], "x", color=colour(method), markersize=7)
            at = np.interp(delivered, good, [values[n] for n in good])
            axes.plot([delivered], [at], "o", color=colour(method), markersize=size + 8, fillstyle="none")
    quality.axhline(0, color="black", linewidth=0.8)
    quality.axhline(-limit, color="black", linewidth=0.8, linestyle="--")
    quality.set(xlabel="iteration", ylabel="validation PSNR change (dB)")
    cost.set(xlabel="iteration", ylabel="MACs kept (%)")
    for axes in (quality, cost):
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", integer=True)
    quality.legend(fontsize=8)
    figure.suptitle(f"{network}: dots accepted, crosses rejected, rings delivered; dashed: the limit", fontsize=9)
    save(figure, output)


def thresholds(results: Path, network: str, method: str, output: Path) -> None:
    """The threshold of each channel group (a row) in each iteration (a column), from the log of `prune`."""
    from pipeline.pruning.iterations import read_log

    log = [entry for entry in read_log(results / "prune" / network / method / "log.json") if entry.thresholds]
    names = list(dict.fromkeys(name for entry in log for name in entry.thresholds))
    values = np.array([[entry.thresholds.get(name, np.nan) for entry in log] for name in names], dtype=float)
    size = (3.2 + max(3.0, 0.6 * len(log)), 1.2 + 0.2 * max(4, len(names)))
    figure = blank(size)
    axes = figure.subplots()
    axes.set_title(f"{network}, {method}: thresholds by channel group", fontsize=9)
    axes.set(xlabel="iteration")
    figure.colorbar(axes.imshow(values, cmap="cividis", aspect="auto")).set_label(
        "threshold (× mean |weight|)", fontsize=8
    )
    axes.set_xticks(range(len(log)), [entry.number for entry in log])
    axes.set_yticks(range(len(names)), plain(names), fontsize=7)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values) if len(log) <= NUMBERED else ():
        tone = "white" if value < middle else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=tone)
    save(figure, output)


def tradeoff(rows: list[dict[str, Any]], network: str, output: Path) -> None:
    """Change of the test PSNR over the MACs kept, a mark for each method; baseline and control as lines."""
    mine = [row for row in rows if row["network"] == network and "mac_percent" in row]
    figure = blank((6, 3.6))
    axes = figure.subplots()
    for number, row in enumerate(mine):
        change, name = row["against_baseline"], row["solution"]
        if name in ("baseline", "control"):
            style = "-" if name == "baseline" else "--"
            axes.axhline(change["mean"], color=colour(name), linewidth=1.2, linestyle=style, label=name)
            continue
        bars = [[change["mean"] - change["low"]], [change["high"] - change["mean"]]]
        axes.errorbar(row["mac_percent"], change["mean"], yerr=bars, color=colour(name), capsize=3, fmt="D",
                      markersize=max(5, 12 - number), label=name)  # fmt: skip
    axes.set_xlim(right=102)
    axes.set(xlabel="MACs kept (%)", ylabel="test PSNR change (dB), plus is better")
    axes.set_title(f"{network}: quality change over computation", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, output)


def layer_times(results: Path, network: str, method: str, output: Path) -> None:
    """Time of each layer, baseline and pruned, and the shares of time and MACs that it keeps, from `latency`."""
    measured = records.latency(results, network, method)
    baseline, own = ([row for row in measured["layers"] if row["network"] == name] for name in ("baseline", method))
    names = plain(row["layer"] for row in baseline)
    figure = blank((9, 1.2 + 0.2 * len(names)))
    spent, kept = figure.subplots(1, 2, sharey=True)
    spent.barh(names, [1e3 * row["seconds"] for row in baseline], color="0.85", label="baseline")
    spent.barh(names, [1e3 * row["seconds"] for row in own], height=0.4, color=colour(method), label=method)
    spent.set(xlabel=f"time (ms), {measured['side']}×{measured['side']} input pixels")
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
        axes.legend(fontsize=8)
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
