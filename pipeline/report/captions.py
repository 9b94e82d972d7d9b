"""The report's figures: which there are, how each one is read, and which files in results/ it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import config, records
from pipeline.evaluation import crops
from pipeline.pruning import iterations
from pipeline.report import figures, pictures, tables


@dataclass(frozen=True)
class Figure:
    """One figure of the report."""

    heading: str
    file: str  # below the report's figures/
    caption: str  # how it is read
    sources: tuple[str, ...]  # what it is drawn from, below results/
    draw: Callable[[Path], None]  # into that file
    notes: tuple[str, ...] = ()  # what belongs below it
    crops: Callable[[], list[pictures.Crop]] | None = None  # of a test image: what the page shows instead of the file


LAYERS = (
    "What each layer costs in the whole network, and what one of its weights costs: the longer a bar on the right, the "
    "more a removed weight saves. Layers with one letter and colour share their channels: a channel goes from all of "
    "them or from none."
)
WIDTHS = "Output channels of each layer under each method: kept (coloured) of those before pruning (grey)."
PATH = (
    "Above: validation PSNR after each iteration, as the change against {0}: plus is better. Below: the MACs of each "
    "iteration's network. Dots were accepted. Crosses were rejected, and pruning went on from the network before them. "
    "The ring is where the delivered network lies on the path, before its fine-tune. An iteration may lose {1:g} dB "
    "(dashed); the fine-tune after the last one must bring the network back to what the gate allows. Where it doesn't, "
    "channels are given back until it does; where it does, a part of what was rejected next may go, too. The "
    "fine-tunes of each method:"
)
THRESHOLDS = (
    "A row is a group of channels that can only be removed together, named by the layer that makes them (+n: and n "
    "more). Each iteration removed the channels of an importance below their group's threshold; docs/method.md says "
    "what importance is."
)
TRADEOFF = (
    "A mark is a method, a set of rules for what goes: its mean change against the baseline. Above the dashed line it "
    "is better than the control. The upright bar is the 95% interval: how far chance in the choice of test images "
    "reaches."
)
TRAINING = (
    "The control is the baseline trained on at least as long as a pruned network, with nothing removed. What it gains "
    "is what any network gets from the extra training alone."
)
SAMPLES = (
    "The part with most contrast, each pixel enlarged. The target is what a perfect network would give. Last: ten "
    "times what pruning changed; grey is no change. No image here is picked by hand: they are those that {0} loses "
    "most on, gains most on, and the one between."
)
TIMES = (
    "Left: milliseconds (ms) of each layer. Right: what {0} keeps of a layer's MACs (bar) and of its time (dot), in "
    "percent. A dot on the bar: the layer became as much faster as its MACs fell. A dot to the right: less so."
)


def figures_of(results: Path, params: config.Params, rows: list[dict[str, Any]], network: str) -> list[Figure]:
    """The figures of one network in the report's order, times last. rows: those of the report's main table."""
    methods, method, of = params.run.methods, params.report.method, (results, network)
    curves = (f"train/{network}/curve.csv", f"control/{network}")

    def figure(heading: str, word: str, caption: str, sources: tuple[str, ...], draw: Callable[[Path], None]) -> Figure:
        return Figure(heading, f"{network}-{word}.png", caption, sources, draw)

    layers = partial(figures.architecture, *of, params.analyze[network].size)
    first = [
        figure("Before pruning", "layers", LAYERS, (f"analyze/{network}",), layers),
        figure(
            "Channels kept and pruned", "widths", WIDTHS, (f"evaluate/{network}/widths.json",),
            partial(figures.widths, *of, methods),
        ),
        _path(results, params, network),
    ]  # fmt: skip
    log = iterations.read_log(results / "prune" / network / method / "log.json")
    if any(entry.thresholds for entry in log):  # else no group can be pruned: there is no map to draw
        first.append(
            figure(
                f"Thresholds of {method}", "thresholds", THRESHOLDS, (f"prune/{network}/{method}/log.json",),
                partial(figures.thresholds, *of, method),
            )
        )  # fmt: skip
    tradeoff = partial(figures.tradeoff, rows, network)
    training = partial(figures.training_curves, *of)
    times = partial(figures.layer_times, *of, method)
    return [
        *first,
        figure("Quality over computing", "tradeoff", TRADEOFF, (f"evaluate/{network}/metrics.json",), tradeoff),
        figure("What the extra training alone gains", "training", TRAINING, curves, training),
        *_samples(results, network, method, params.report.crop),
        figure("Layer by layer", "times", TIMES.format(method), (f"latency/{network}/latency.json",), times),
    ]


def _samples(results: Path, network: str, method: str, crop: int) -> list[Figure]:
    """A figure for each of the test images that were chosen; the first one's caption says how all of them are read."""
    samples, caption, below = records.samples(results, network, method), SAMPLES.format(method), []
    for reason in (reason for reason in crops.SAMPLES if reason in samples):
        (name, change), word = samples[reason], reason.replace(" ", "-")
        frames = f"evaluate/{network}/frames/{word}"
        changed = f"{tables.signed(change)} dB against the baseline"
        heading = f"Test image with the {_named(reason, change)}: {tables.escaped(name)}, {changed}"
        draw = partial(pictures.sample, results / frames, method, crop)
        cut = partial(pictures.crops, results / frames, method, crop)
        sources = (frames, f"evaluate/{network}/samples.json")
        below.append(Figure(heading, f"{network}-{word}.png", caption, sources, draw, crops=cut))
        caption = ""
    return below


def _path(results: Path, params: config.Params, network: str) -> Figure:
    """Every method's path, with what each of its fine-tunes came to."""
    methods, gate = params.run.methods, params.gate
    limit = gate.max_psnr_drop + params.tolerance[network].psnr
    notes = (
        f"{method}: {'; '.join(records.attempts(results / 'finetune' / network / method / 'attempts.json'))}"
        for method in methods
    )
    return Figure(
        "The path", f"{network}-path.png", PATH.format(gate.reference_name, limit),
        (f"prune/{network}/METHOD/path.csv", f"finetune/{network}/METHOD/attempts.json"),
        partial(figures.path, results, network, methods, limit), tuple(notes),
    )  # fmt: skip


def _named(reason: str, change: float) -> str:
    """What an image stands for: where no image lost, the largest loss is the smallest gain, and the other way round."""
    if reason == "median":
        return "median change"
    if change >= 0 and reason == "largest loss":
        return "smallest gain"
    return "smallest loss" if change <= 0 and reason == "largest gain" else reason
