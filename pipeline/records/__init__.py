"""The files in results/ that one stage writes and another reads: how they are read; types.py has their types.

Numbers are finite and within bounds that no honest figure leaves; keys that aren't named here may stand there. Whatever
is wrong is one sentence (UserError): the file, the key, what is needed, and the command that makes the file anew.
Entries of lists are counted from 0, as iterations are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import UserError
from pipeline.files import again, read_csv, read_json
from pipeline.records.types import (
    COSTS,
    Baseline,
    CurveRow,
    Figure,
    Finite,
    Group,
    Groups,
    ImageRow,
    Index,
    Latency,
    LayerRow,
    Number,
    PathRow,
    Point,
    Rate,
    Samples,
    SetSolutions,
    Solutions,
    Text,
    Trial,
    Tuned,
    Whole,
    Widths,
)
from pipeline.schema import expected

__all__ = [
    "COSTS", "DELIVERED", "Baseline", "CurveRow", "Figure", "Finite", "Group", "Groups", "ImageRow", "Index",
    "Latency", "LayerRow", "Number", "PathRow", "Point", "Rate", "Samples", "SetSolutions", "Solutions", "Text",
    "Trial", "Tuned", "Whole", "Widths", "attempts", "checked", "control", "curve", "ended", "groups", "index",
    "latency", "layers", "path_of", "rate", "read", "rows", "samples", "sets", "solutions", "test_sets", "trials",
    "widths", "wrong",
]  # fmt: skip

T = TypeVar("T")
DELIVERED = " (delivered)"  # how the sentence of the delivered network ends in attempts.json


def read(path: Path, kind: type[T] | Any, also: Iterable[str] = ()) -> T:
    """A JSON file as a value of its type; `also`: further keys that it needs, as params.yaml's methods.

    UserError when it isn't there, isn't JSON, or isn't of that type.
    """
    value = read_json(path)
    content = checked(path, value, TypeAdapter(kind).validate_python)
    missing = [key for key in also if key not in content]
    if missing:
        wrong(path, f"has no {', '.join(missing)}")
    return content


def rows(path: Path, kind: type[T]) -> list[T]:
    """A CSV file's rows as values of their type; UserError as for `read`."""
    adapter = TypeAdapter(kind)
    table = read_csv(path, *kind.__annotations__)
    return [checked(path, row, adapter.validate_strings, f"row {n}") for n, row in enumerate(table, 1)]


def checked(path: Path, value: Any, validate: Callable[[Any], T], *above: str) -> T:
    """A part of a file as a value of its type."""
    try:
        return validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    where, kind = errors[0]["loc"], errors[0]["type"]
    if kind == "missing":
        names = [str(e["loc"][-1]) for e in errors if e["type"] == kind and e["loc"][:-1] == where[:-1]]
        wrong(path, f"has no {', '.join(names)}", *above, *where[:-1])
    value_read = repr(errors[0]["input"])
    value_read = value_read if len(value_read) <= 60 else f"{value_read[:60]}…"
    wrong(path, f"is {value_read} but {expected(errors[0])}", *above, *where)


def wrong(path: Path, what: str, *where: str | int) -> NoReturn:
    """The sentence about a file, or about the key of it that the names and places `where` lead to."""
    keys = [f"entry {part}" if isinstance(part, int) else part[:80] for part in where if part != "[key]"]
    sentence = f"{': ' * bool(keys)}{', '.join(keys)} {what}"  # with names that the file may hold
    sentence = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in sentence)
    raise UserError(f"{path}{sentence}; {again(path)}")


# --- the files whose parts must fit one another -------------------------------------------------------------------


def index(path: Path) -> Index:
    """A prepared split's index; UserError too when its lists aren't of the same images, or its task needs more."""
    split: Index = read(path, Index)
    for key in ("sizes", "shown", "ratio"):
        if key in split and len(split[key]) != len(split["names"]):
            wrong(path, f"has {len(split[key])} entries, but names has {len(split['names'])}", key)
    targets = set(split.get("shown", [0]))
    if targets != set(range(len(targets))):
        wrong(path, "should number the targets from 0 on, without a gap", "shown")
    for name, low, high in [("exposures", *pair) for pair in split.get("exposures", ())]:
        if low > high:
            wrong(path, f"has a lowest value, {low:g}, above its highest, {high:g}", name)
    kind, has = split["task"], split.keys() | split["content"].keys()
    needed: dict[str, list[tuple[str, ...]]] = {
        "super_resolution": [("high",), ("low",)],
        "low_light": [("high",), ("exposures", "raw"), *[("ratio",), ("raw",)] * bool(has & {"ratio", "raw"})],
        "restoration": [("high",), ("low", "noise")],
    }
    scale = {"low_light": 2, "restoration": 1}.get(kind, split["scale"])
    if split["scale"] != scale:
        wrong(path, f"is {split['scale']}, but {kind} has {scale}", "scale")
    missing = [" or ".join(ways) for ways in needed[kind] if not has & set(ways)]
    if missing:
        wrong(path, f"lacks {', '.join(missing)}, which {kind} needs")
    return split


def control(results: Path, network: str, steps: int | None = None, iterations: int | None = None) -> list[Point]:
    """The control's points: after each iteration, the first being the baseline, and after its fine-tune.

    steps, iterations: of an iteration, and how many there must be, where the caller knows them.
    """
    folder = results / "control" / network
    path = folder / "curve.json"
    points = curve(path, steps)
    if iterations is not None and len(points) != iterations + 1:
        wrong(
            path, f"has {len(points)} points, but retrain.{network}.max_iterations {iterations} makes {iterations + 1}"
        )
    end: Point = read(folder / "end.json", Point)
    if end["steps"] < points[-1]["steps"]:
        wrong(folder / "end.json", f"is {end['steps']} but {path} goes on to {points[-1]['steps']}", "steps")
    _by_image(folder / "end.json", end, len(points[0]["image_psnr"]))
    return [*points, end]


def curve(path: Path, steps: int | None = None) -> list[Point]:
    """The control's points after each iteration, of so many steps."""
    control_points: list[Point] = read(path, list[Point])
    if not control_points:
        wrong(path, "has no points")
    each = control_points[-1]["steps"] // max(1, len(control_points) - 1) if steps is None else steps
    for number, point in enumerate(control_points):
        steps_here = number * each
        if point["steps"] != steps_here:
            wrong(path, f"is {point['steps']} but should be {steps_here}", number, "steps")
        _by_image(path, point, len(control_points[0]["image_psnr"]), number)
    return control_points


def ended(results: Path, network: str, method: str, images: int) -> Point:
    """The delivered network's validation quality, that of each of so many images too."""
    path = results / "finetune" / network / method / "end.json"
    end: Point = read(path, Point)
    _by_image(path, end, images)
    return end


def rate(path: Path) -> float:
    """The factor to the rates of retrain and finetune that the control found."""
    return read(path, Rate)["factor"]


def _by_image(path: Path, point: Point, images: int, *where: int) -> None:
    """UserError unless a point's means are those of its images, and it has so many of these."""
    for key, values in (("psnr", point["image_psnr"]), ("ssim", point["image_ssim"])):
        if len(values) != images:
            wrong(path, f"has {len(values)} entries, but there are {images} images", *where, f"image_{key}")
        if not _equal(point[key], math.fsum(values) / images):  # type: ignore[literal-required]
            wrong(path, f"is {point[key]:g}, but its images' mean is another", *where, key)  # type: ignore[literal-required]


def solutions(results: Path, network: str, methods: Iterable[str]) -> dict[str, Any]:
    """What `evaluate` measured of every solution; shares and differences are those of the figures beside them."""
    path = results / "evaluate" / network / "metrics.json"
    quality: dict[str, Any] = read(path, Solutions, methods)
    for name, row in quality.items():
        for key in COSTS if name != "input" else ():
            share = 100 * row[key] / quality["baseline"][key]
            if not _equal(row[f"{key}_percent"], share):
                wrong(path, f"is {row[f'{key}_percent']:g} but {key} is {share:g}% of the baseline's", name,
                      f"{key}_percent")  # fmt: skip
        for other in ("baseline", "control"):
            difference, mean = row[f"against_{other}"], row["psnr"] - quality[other]["psnr"]
            if not _equal(difference["mean"], mean):
                wrong(path, f"is {difference['mean']:g} but psnr differs by {mean:g}", name, f"against_{other}", "mean")
            if not difference["low"] <= difference["high"]:
                wrong(path, f"is above high, {difference['high']:g}", name, f"against_{other}", "low")
    return quality


def sets(results: Path, network: str, methods: Iterable[str]) -> dict[str, Any]:
    """What `evaluate` measured on each extra test set."""
    path = results / "evaluate" / network / "sets.json"
    measured_sets: dict[str, Any] = read(path, dict[Text, SetSolutions])
    for name, row in measured_sets.items():
        missing = [method for method in methods if method not in row]
        if missing:
            wrong(path, f"has no {', '.join(missing)}", name)
    return measured_sets


def test_sets(folder: Path) -> list[str]:
    """The names of the extra test sets that `prepare` made, each a folder beside names.json."""
    path = folder / "names.json"
    set_names: list[str] = read(path, list[Text])
    there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if sorted(set_names) != there:
        wrong(path, f"names {', '.join(set_names)[:80] or 'nothing'}, but the folders are {', '.join(there) or 'none'}")
    return set_names


def attempts(path: Path) -> list[str]:
    """A sentence for each network that was fine-tuned."""
    sentences: list[str] = read(path, list[Text])
    if not sentences:
        wrong(path, "has no sentence")
    return sentences


def groups(results: Path, network: str) -> Groups:
    """The baseline's coupled groups, and what of it stays whole."""
    return read(results / "analyze" / network / "groups.json", Groups)


def layers(results: Path, network: str) -> list[LayerRow]:
    """The baseline's convolutions in the network's order."""
    path = results / "analyze" / network / "layers.csv"
    layer_rows = rows(path, LayerRow)
    if len({row["layer"] for row in layer_rows}) < len(layer_rows):
        wrong(path, "names a layer twice")
    return layer_rows


def widths(results: Path, network: str, methods: Iterable[str]) -> tuple[list[LayerRow], dict[str, dict[str, int]]]:
    """The baseline's convolutions, and what each method left of their output channels."""
    path, whole = results / "evaluate" / network / "widths.json", layers(results, network)
    counts: dict[str, dict[str, int]] = read(path, Widths, methods)
    for name in ("baseline", *methods):
        if counts[name].keys() != {row["layer"] for row in whole}:
            wrong(path, f"has other layers than {results}/analyze/{network}/layers.csv", name)
        for row in whole:
            width = counts[name][row["layer"]]
            if width > row["channels"] or (name == "baseline" and width != row["channels"]):
                wrong(path, f"is {width}, but the layer has {row['channels']} channels", name, row["layer"])
    return whole, counts


def path_of(results: Path, network: str, method: str) -> tuple[list[PathRow], float]:
    """A method's iterations, the baseline first, and the place on this path of what the fine-tune delivered.

    The place is an accepted iteration's number. Or it lies by the MACs between two of them, or between the last one and
    the one that was refused after it.
    """
    path = results / "prune" / network / method / "path.csv"
    path_rows = rows(path, PathRow)
    for number, row in enumerate(path_rows):
        passed = row["verdict"] == "accepted"
        if row["number"] != number or not (number or passed) or row["mac"] > path_rows[0]["mac"]:
            wrong(path, "isn't the log of a pruning: iterations from 0 on, the accepted baseline first, none larger")
        if passed and not abs(row["psnr_change"]) <= 100:  # also NaN
            wrong(path, f"is {row['psnr_change']:g} but should be a finite number of dB", f"row {number + 1}",
                  "psnr_change")  # fmt: skip
    tuned = results / "finetune" / network / method / "metrics.json"
    percent: float = read(tuned, Tuned)["mac_percent"]
    points = [row for row in path_rows if row["verdict"] == "accepted"]
    refused = path_rows[points[-1]["number"] + 1 :]
    points += [row for row in refused if row["mac"] < points[-1]["mac"]][:1]
    shares = [100 * row["mac"] / path_rows[0]["mac"] for row in points]
    same = [row["number"] for row, share in zip(points, shares, strict=True) if _equal(share, percent)]
    if same:
        return path_rows, same[-1]
    for place, (before, after) in enumerate(pairwise(shares)):
        if after < percent < before:
            first, second = points[place]["number"], points[place + 1]["number"]
            return path_rows, first + (before - percent) / (before - after) * (second - first)
    wrong(tuned, f"is {percent:g}, which no iteration of {path} leads to", "mac_percent")


def latency(results: Path, network: str, method: str) -> Latency:
    """What `latency` measured; every network beside the baseline, on each runtime, size and layer."""
    path = results / "latency" / network / "latency.json"
    timings: Latency = read(path, Latency)
    shares, timed, own = timings["mac_percent"], timings["networks"], timings["layers"]
    for name in ("baseline", method, f"{method}, to {timings['simd_width']}"):
        if name not in shares:
            wrong(path, f"has no {name}", "mac_percent")
    before: set[tuple[str, int]] = set()
    for number, row in enumerate(timed):
        if row["network"] not in shares:
            wrong(path, f"is {row['network']!r}, which mac_percent hasn't", "networks", number, "network")
        if row["network"] == "baseline":
            before.add((row["runtime"], row["side"]))
        elif (row["runtime"], row["side"]) not in before:
            wrong(path, "has no baseline before it", "networks", number)
    if not any((row["network"], row["side"]) == (method, timings["side"]) for row in timed):
        wrong(path, f"has no row of {method} at the side {timings['side']}", "networks")
    first, second = ([row for row in own if row["network"] == name] for name in ("baseline", method))
    if not first or [row["layer"] for row in first] != [row["layer"] for row in second]:
        wrong(path, f"has other layers of baseline than of {method}", "layers")
    if len({row["layer"] for row in first}) < len(first) or len(first) + len(second) != len(own):
        wrong(path, f"has other rows than one for each layer of baseline and {method}", "layers")
    for number, layer in enumerate(own):
        costs = layer.keys() & {"mac", "bw", "inputs", "outputs"}
        if len(costs) != (0 if layer["layer"] == own[len(first) - 1]["layer"] else 4):
            wrong(path, "has costs where it should have none, or lacks some", "layers", number)
    return timings


def samples(results: Path, network: str, method: str) -> dict[str, tuple[str, float]]:
    """The test images that are shown, by why each one is, with the method's PSNR change against the baseline in dB."""
    path, table = results / "evaluate" / network / "samples.json", results / "evaluate" / network / "images.csv"
    chosen: dict[str, tuple[str, float]] = read(path, Samples)
    measured = {row["image"]: row["psnr_change"] for row in rows(table, ImageRow) if row["solution"] == method}
    for reason, (name, change) in chosen.items():
        if name not in measured:
            wrong(path, f"is {name[:60]!r}, of which {table} has no row of {method}", reason)
        if not abs(change - measured[name]) <= 6e-5:  # it has four decimals
            wrong(path, f"is {change:g}, but {measured[name]:g} in {table}", reason)
    ends = {"largest loss": min(measured.values()), "largest gain": max(measured.values())}
    for reason, change in ends.items():
        if reason in chosen and measured[chosen[reason][0]] != change:
            wrong(path, f"has the change {chosen[reason][1]:g}, but {table} has one of {change:g}", reason)
    if "median" in chosen:
        ranked = sorted(measured.values(), reverse=True)
        if measured[chosen["median"][0]] != ranked[len(ranked) // 2]:
            wrong(path, f"has the change {chosen['median'][1]:g}, which isn't the median of {table}", "median")
    return chosen


def trials(folder: Path) -> list[Trial]:
    """A study's trials that were finished or given up."""
    path = folder / "trials.json"
    listed: list[Trial] = read(path, list[Trial])
    ended = [trial for trial in listed if trial["state"] in ("complete", "pruned")]
    for trial in ended:
        needed = {"mac_percent"} | ({"feasible", "psnr_change"} if trial["state"] == "complete" else set())
        if needed - trial.keys():
            wrong(path, f"has no {', '.join(sorted(needed - trial.keys()))}", f"trial {trial['trial']}")
        if trial["params"].keys() != ended[0]["params"].keys():
            wrong(path, "has other params than the first", f"trial {trial['trial']}")
    return ended


def _equal(one: float, other: float) -> bool:
    """Equal but for rounding."""
    return abs(one - other) <= 1e-9 * max(1.0, abs(one), abs(other))
