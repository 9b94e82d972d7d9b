"""The report's pictures: which there are, how each one is read, and which files in results/ it shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import config, records
from pipeline.evaluation import crops
from pipeline.pruning import iterations
from pipeline.report import figures


@dataclass(frozen=True)
class Picture:
    """One picture of the report."""

    heading: str
    file: str  # below the report's pictures/
    says: str  # how it is read
    sources: tuple[str, ...]  # what it is drawn from, below results/
    draw: Callable[[Path], None]  # into that file
    notes: tuple[str, ...] = ()  # what belongs below it


LAYERS = (
    "What each layer costs in the whole network, and what one of its weights costs: the longer a bar on the right, the "
    "more a removed weight saves. Layers with one letter and colour share their channels: a channel goes from all of "
    "them or from none."
)
WIDTHS = "Output channels that each method left (coloured) of those that there were (grey), as kept/before."
PATH = (
    "Left: validation PSNR after each iteration, against the {0}. Right: the MACs that it would keep. Dots were "
    "accepted; crosses were rejected, and the network before them came back. An iteration may lose {1:g} dB (dashed), "
    "which the fine-tune after the last one must win back; where it doesn't, an earlier iteration's network is tried. "
    "The ring is the one that was delivered. What the fine-tunes said:"
)
THRESHOLDS = (
    "A row is a group of channels that can only go together, named by the layer that makes them (+n: and n more). In "
    "each iteration, a channel went whose weights were smaller than its group's threshold in every layer that makes "
    "it; 1 is the mean weight of a layer before pruning."
)
TRADEOFF = "Further left is cheaper, higher is better. Bars are 95% intervals of the difference to the baseline."
TRAINING = (
    "The control is the baseline trained on as long as a pruned network is, with nothing removed. What it gains is "
    "what any network gets from the extra training alone."
)
LOOKS = (
    "The test images looked at are chosen by rule: where {0} loses most against the baseline, the median, and where it "
    "gains most. The crop is the part with most contrast, each pixel 3 × 3; on the right ten times what pruning "
    "changed: grey is no change."
)
TIMES = (
    "Left: milliseconds of each layer. Right: what {0} keeps of a layer's MACs (bar) and of its time (dot); a dot on "
    "the bar is a layer that gets all the time that its MACs promise, one to the right of it falls short."
)


def pictures(results: Path, params: config.Params, rows: list[dict[str, Any]], network: str) -> list[Picture]:
    """The pictures of one network in the report's order, times last. rows: those of the report's table."""
    methods, shown, of = params.run.methods, params.report.method, (results, network)
    curves = (f"train/{network}/curve.csv", f"control/{network}")

    def picture(heading: str, word: str, says: str, sources: tuple[str, ...], draw: Callable[[Path], None]) -> Picture:
        return Picture(heading, f"{network}-{word}.png", says, sources, draw)

    layers = partial(figures.architecture, *of, params.analyze[network].size)
    found = [
        picture("Before pruning", "layers", LAYERS, (f"analyze/{network}",), layers),
        picture(
            "Channels kept and pruned", "widths", WIDTHS, (f"evaluate/{network}/widths.json",),
            partial(figures.widths, *of, methods),
        ),
        _path(results, params, network),
        picture(
            f"Thresholds of {shown}", "thresholds", THRESHOLDS, (f"prune/{network}/{shown}/log.json",),
            partial(figures.thresholds, *of, shown),
        ),
        picture(
            "Quality against MACs", "tradeoff", TRADEOFF, (f"evaluate/{network}/metrics.json",),
            partial(figures.tradeoff, rows, network),
        ),
        picture(
            "What the extra training alone gains", "training", TRAINING, curves,
            partial(figures.training_curves, *of),
        ),
    ]  # fmt: skip
    log = iterations.read_log(results / "prune" / network / shown / "log.json")
    if not any(entry.thresholds for entry in log):  # no group can give: there is no map to draw
        found = [one for one in found if one.file != f"{network}-thresholds.png"]
    looks = records.looks(results, network)
    said = LOOKS.format(shown)
    for rule in (rule for rule in crops.RULES if rule in looks):
        (name, drop), word = looks[rule], rule.replace(" ", "-")
        frames = f"evaluate/{network}/pictures/{word}"
        draw = partial(figures.looks, results / frames, shown, params.report.crop)
        heading = f"Looking closer, {_named(rule, drop)}: {escaped(name)}, {-drop:+.3f} dB against the baseline"
        found.append(picture(heading, word, said, (frames, f"evaluate/{network}/looks.json"), draw))
        said = ""  # once is enough
    times = partial(figures.layer_times, *of, shown)
    return [
        *found,
        picture("Layer by layer", "times", TIMES.format(shown), (f"latency/{network}/latency.json",), times),
    ]


def _path(results: Path, params: config.Params, network: str) -> Picture:
    """Every method's path, with what its fine-tunes said."""
    methods, gate = params.run.methods, params.gate
    limit = gate.max_psnr_drop + params.tolerance[network].psnr
    said = (
        f"{method}: {'; '.join(records.attempts(results / 'finetune' / network / method / 'attempts.json'))}"
        for method in methods
    )
    return Picture(
        "The path", f"{network}-path.png", PATH.format(gate.reference, limit),
        (f"prune/{network}/METHOD/path.csv", f"finetune/{network}/METHOD/attempts.json"),
        partial(figures.path, results, network, methods, limit), tuple(said),
    )  # fmt: skip


def escaped(name: str) -> str:
    """A file's name as Markdown shows it."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", name)


def _named(rule: str, drop: float) -> str:
    """What a rule has found: the largest loss may be a gain, where no image lost."""
    if drop <= 0 and rule == "largest loss":
        return "smallest gain"
    return "smallest loss" if drop >= 0 and rule == "largest gain" else rule
