"""The files in results/ that one stage writes and another reads: their types, and how they are read.

Numbers are finite and within bounds that no honest figure leaves; keys that aren't named here may stand there. Whatever
is wrong is one sentence (UserError): the file, the key, what is needed, and the command that makes the file anew.
Entries of lists are counted from 0, as iterations are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, NotRequired, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from pipeline.errors import UserError
from pipeline.files import again, read_csv, read_json
from pipeline.schema import expected

T = TypeVar("T")

LARGEST = 2**63 - 1
Text = Annotated[str, Field(strict=True)]
Whole = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
Number = Annotated[float, Field(strict=True, ge=-1e15, le=1e15, allow_inf_nan=False)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Psnr = Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]  # dB; equal images have 100
Ssim = Annotated[float, Field(strict=True, ge=-1.001, le=1.001, allow_inf_nan=False)]  # rounding may pass 1
Drop = Annotated[float, Field(strict=True, ge=-100, le=100, allow_inf_nan=False)]  # dB or SSIM; or a gain
Figure = Annotated[float, Field(strict=True)]  # of a network that was rejected, perhaps because it is none (NaN)
Share = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
Percent = Annotated[float, Field(strict=True, gt=0, le=100, allow_inf_nan=False)]  # of the baseline's
COSTS = ("mac", "weights", "activations", "bw")  # MACs and elements; bw: weights and activations


class Baseline(TypedDict):
    """train/NETWORK/metrics.json: quality on the validation images."""

    psnr: Psnr
    ssim: Ssim
    input_psnr: Psnr


class Point(TypedDict):
    """control/NETWORK: an entry of curve.json, and metrics.json, its end."""

    steps: Whole
    psnr: Psnr
    ssim: Ssim


Side = Annotated[int, Field(strict=True, ge=1, le=10**6)]  # pixels
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Range = Annotated[tuple[Positive, Positive], Field(strict=False)]


class Index(TypedDict):
    """index.json of a split below prepare/NETWORK, see data.storage."""

    task: Literal["super_resolution", "low_light", "restoration"]
    names: Annotated[list[Text], Field(min_length=1)]
    scale: Annotated[int, Field(strict=True, ge=1, le=8)]
    sizes: list[Annotated[tuple[Side, Side], Field(strict=False)]]
    content: dict[Literal["high", "low", "raw"], Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")]]
    shown: NotRequired[list[Whole]]
    ratio: NotRequired[list[Positive]]
    exposures: NotRequired[Annotated[tuple[Range, Range], Field(strict=False)]]
    noise: NotRequired[Annotated[float, Field(strict=True, ge=0, le=255, allow_inf_nan=False)]]
    seed: NotRequired[Whole]


class Group(TypedDict):
    """One coupled group of groups.json."""

    name: Text
    channels: Count
    producers: list[Text]
    readers: list[Text]


class Groups(TypedDict):
    """analyze/NETWORK/groups.json."""

    groups: list[Group]
    frozen: list[Text]  # a sentence for each part that stays whole


class LayerRow(TypedDict):
    """A row of analyze/NETWORK/layers.csv: a convolution of the baseline."""

    layer: str
    channels: Count
    mac: Count
    weights: Count
    mac_per_weight: Number


class CurveRow(TypedDict):
    """A row of train/NETWORK/curve.csv."""

    step: Whole
    psnr: Psnr


class PathRow(TypedDict):
    """A row of prune/NETWORK/METHOD/path.csv: an iteration. One that was rejected may have no quality (NaN)."""

    number: Whole
    verdict: Literal["accepted", "rejected"]
    mac: Count
    psnr_change: Figure


class Tuned(TypedDict):
    """finetune/NETWORK/METHOD/metrics.json; the changes are against the gate's reference."""

    mac_percent: Percent
    bw_percent: Percent
    psnr: Psnr
    ssim: Ssim
    psnr_change: Drop
    ssim_change: Drop
    steps: Whole


class Difference(TypedDict):
    """A solution's PSNR less another's in dB, as quality.Difference."""

    mean: Drop
    low: Drop
    high: Drop
    worst: Drop
    worst_name: Text


class Measured(TypedDict):
    """A solution on the test images; the input has no costs."""

    psnr: Psnr
    ssim: Ssim
    against_baseline: Difference
    against_original: Difference


class Solution(Measured):
    """A network on the test images."""

    mac: Count
    weights: Count
    activations: Count
    bw: Count
    mac_percent: Percent
    weights_percent: Percent
    activations_percent: Percent
    bw_percent: Percent


class Solutions(TypedDict, extra_items=Solution):
    """evaluate/NETWORK/metrics.json; a method is a further key."""

    input: Measured
    baseline: Solution
    original: Solution


class SetQuality(TypedDict):
    """Means over an extra test set, RGB and Y."""

    psnr: Psnr
    ssim: Ssim
    psnr_y: Psnr
    ssim_y: Ssim


class SetSolutions(TypedDict, extra_items=SetQuality):
    """One extra test set of evaluate/NETWORK/sets.json; a method is a further key."""

    images: Count
    input: SetQuality
    baseline: SetQuality
    original: SetQuality


class Widths(TypedDict, extra_items=dict[Text, Count]):
    """evaluate/NETWORK/widths.json: output channels by layer; a method is a further key."""

    baseline: dict[Text, Count]
    original: dict[Text, Count]


Look = Annotated[tuple[Text, Drop], Field(strict=False)]  # the test image's name, its PSNR drop in dB
# evaluate/NETWORK/looks.json, by figures.RULES
Looks = TypedDict("Looks", {"largest loss": Look, "median": NotRequired[Look], "largest gain": NotRequired[Look]})


class Timed(TypedDict):
    """One network's time and memory on one runtime, see latency.measure."""

    runtime: Text
    side: Count
    network: Text
    seconds: Number
    low: Number
    high: Number
    ratio: Number
    memory: Whole | None  # bytes


class LayerTime(TypedDict):
    """One layer's time, see layer_times.measure; what lies outside of layers has no costs."""

    network: Text
    layer: Text
    seconds: Number
    ratio: Number
    mac: NotRequired[Count]
    bw: NotRequired[Count]
    inputs: NotRequired[Count]
    outputs: NotRequired[Count]


class Latency(TypedDict):
    """latency/NETWORK/latency.json."""

    processor: Text
    lanes: Count
    threads: Count
    mac_percent: dict[Text, Percent]
    networks: list[Timed]
    left_out: dict[Text, Text]
    side: Count  # of `layers`
    layers: list[LayerTime]


class Trial(TypedDict):
    """An entry of a study's trials.json; only one that was finished or given up has figures."""

    trial: Whole
    state: Text
    params: dict[Text, Number]
    mac_percent: NotRequired[Percent]
    feasible: NotRequired[Annotated[bool, Field(strict=True)]]
    psnr_change: NotRequired[Figure]


def read(path: Path, kind: type[T] | Any, also: Iterable[str] = ()) -> T:
    """A JSON file as a value of its type; `also`: further keys that it needs, as params.yaml's methods.

    UserError when it isn't there, isn't JSON, or isn't of that type.
    """
    value = read_json(path)
    found = checked(path, value, TypeAdapter(kind).validate_python)
    missing = [key for key in also if key not in found]
    if missing:
        wrong(path, f"has no {', '.join(missing)}")
    return found


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
        faults = error.errors(include_url=False)
    where, kind = faults[0]["loc"], faults[0]["type"]
    if kind == "missing":
        names = [str(f["loc"][-1]) for f in faults if f["type"] == kind and f["loc"][:-1] == where[:-1]]
        wrong(path, f"has no {', '.join(names)}", *above, *where[:-1])
    given = repr(faults[0]["input"])
    given = given if len(given) <= 60 else f"{given[:60]}…"
    wrong(path, f"is {given} but {expected(faults[0])}", *above, *where)


def wrong(path: Path, what: str, *where: str | int) -> NoReturn:
    """The sentence about a file, or about the key of it that the names and places `where` lead to."""
    keys = [f"entry {part}" if isinstance(part, int) else part[:80] for part in where if part != "[key]"]
    said = f"{': ' * bool(keys)}{', '.join(keys)} {what}"  # with names that the file may hold
    said = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in said)
    raise UserError(f"{path}{said}; {again(path)}")


# --- the files whose parts must fit one another -------------------------------------------------------------------


def index(path: Path) -> Index:
    """A prepared split's index; UserError too when its lists aren't of the same pictures, or its task needs more."""
    found: Index = read(path, Index)
    for key in ("sizes", "shown", "ratio"):
        if key in found and len(found[key]) != len(found["names"]):
            wrong(path, f"has {len(found[key])} entries, but names has {len(found['names'])}", key)
    targets = set(found.get("shown", [0]))
    if targets != set(range(len(targets))):
        wrong(path, "should number the targets from 0 on, without a gap", "shown")
    for name, low, high in [("exposures", *pair) for pair in found.get("exposures", ())]:
        if low > high:
            wrong(path, f"has a lowest value, {low:g}, above its highest, {high:g}", name)
    kind, has = found["task"], found.keys() | found["content"].keys()
    needed = {
        "super_resolution": [("high",), ("low",)],
        "low_light": [("high",), ("exposures", "raw"), *[("ratio",), ("raw",)] * bool(has & {"ratio", "raw"})],
        "restoration": [("high",), ("low", "noise")],
    }[kind]
    scale = {"low_light": 2, "restoration": 1}.get(kind, found["scale"])
    if found["scale"] != scale:
        wrong(path, f"is {found['scale']}, but {kind} has {scale}", "scale")
    missing = [" or ".join(ways) for ways in needed if not has & set(ways)]
    if missing:
        wrong(path, f"lacks {', '.join(missing)}, which {kind} needs")
    return found


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
    end: Point = read(folder / "metrics.json", Point)
    if end["steps"] < points[-1]["steps"]:
        wrong(folder / "metrics.json", f"is {end['steps']} but {path} goes on to {points[-1]['steps']}", "steps")
    return [*points, end]


def curve(path: Path, steps: int | None = None) -> list[Point]:
    """The control's points after each iteration, of so many steps."""
    found: list[Point] = read(path, list[Point])
    if not found:
        wrong(path, "has no points")
    for number, point in enumerate(found):
        wanted = number * (found[-1]["steps"] // max(1, len(found) - 1) if steps is None else steps)
        if point["steps"] != wanted:
            wrong(path, f"is {point['steps']} but should be {wanted}", number, "steps")
    return found


def solutions(results: Path, network: str, methods: Iterable[str]) -> dict[str, Any]:
    """What `evaluate` measured of every solution; shares and differences are those of the figures beside them."""
    path = results / "evaluate" / network / "metrics.json"
    found: dict[str, Any] = read(path, Solutions, methods)
    for name, row in found.items():
        for key in COSTS if name != "input" else ():
            share = 100 * row[key] / found["baseline"][key]
            if not _equal(row[f"{key}_percent"], share):
                wrong(path, f"is {row[f'{key}_percent']:g} but {key} is {share:g}% of the baseline's", name,
                      f"{key}_percent")  # fmt: skip
        for other in ("baseline", "original"):
            difference, mean = row[f"against_{other}"], row["psnr"] - found[other]["psnr"]
            if not _equal(difference["mean"], mean):
                wrong(path, f"is {difference['mean']:g} but psnr differs by {mean:g}", name, f"against_{other}", "mean")
            if not difference["low"] <= difference["high"]:
                wrong(path, f"is above high, {difference['high']:g}", name, f"against_{other}", "low")
    return found


def sets(results: Path, network: str, methods: Iterable[str]) -> dict[str, Any]:
    """What `evaluate` measured on each extra test set."""
    path = results / "evaluate" / network / "sets.json"
    found: dict[str, Any] = read(path, dict[Text, SetSolutions])
    for name, row in found.items():
        missing = [method for method in methods if method not in row]
        if missing:
            wrong(path, f"has no {', '.join(missing)}", name)
    return found


def test_sets(folder: Path) -> list[str]:
    """The names of the extra test sets that `prepare` made, each a folder beside names.json."""
    path = folder / "names.json"
    found: list[str] = read(path, list[Text])
    there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if sorted(found) != there:
        wrong(path, f"names {', '.join(found)[:80] or 'nothing'}, but the folders are {', '.join(there) or 'none'}")
    return found


def attempts(path: Path) -> list[str]:
    """A sentence for each network that was fine-tuned."""
    found: list[str] = read(path, list[Text])
    if not found:
        wrong(path, "has no sentence")
    return found


def groups(results: Path, network: str) -> Groups:
    """The baseline's coupled groups, and what of it stays whole."""
    return read(results / "analyze" / network / "groups.json", Groups)


def layers(results: Path, network: str) -> list[LayerRow]:
    """The baseline's convolutions in the network's order."""
    path = results / "analyze" / network / "layers.csv"
    found = rows(path, LayerRow)
    if len({row["layer"] for row in found}) < len(found):
        wrong(path, "names a layer twice")
    return found


def widths(results: Path, network: str, methods: Iterable[str]) -> tuple[list[LayerRow], dict[str, dict[str, int]]]:
    """The baseline's convolutions, and what each method left of their output channels."""
    path, whole = results / "evaluate" / network / "widths.json", layers(results, network)
    found: dict[str, dict[str, int]] = read(path, Widths, methods)
    for name in ("baseline", *methods):
        if found[name].keys() != {row["layer"] for row in whole}:
            wrong(path, f"has other layers than {results}/analyze/{network}/layers.csv", name)
        for row in whole:
            width = found[name][row["layer"]]
            if width > row["channels"] or (name == "baseline" and width != row["channels"]):
                wrong(path, f"is {width}, but the layer has {row['channels']} channels", name, row["layer"])
    return whole, found


def path_of(results: Path, network: str, method: str) -> tuple[list[PathRow], int]:
    """A method's iterations, the baseline first, and the number of the one that the fine-tune delivered."""
    path = results / "prune" / network / method / "path.csv"
    found = rows(path, PathRow)
    for number, row in enumerate(found):
        accepted = row["verdict"] == "accepted"
        if row["number"] != number or not (number or accepted) or row["mac"] > found[0]["mac"]:
            wrong(path, "isn't the log of a pruning: iterations from 0 on, the accepted baseline first, none larger")
        if accepted and not abs(row["psnr_change"]) <= 100:  # also NaN
            wrong(path, f"is {row['psnr_change']:g} but should be a finite number of dB", f"row {number + 1}",
                  "psnr_change")  # fmt: skip
    tuned = results / "finetune" / network / method / "metrics.json"
    percent = read(tuned, Tuned)["mac_percent"]
    held = [
        row["number"]
        for row in found
        if row["verdict"] == "accepted" and _equal(100 * row["mac"] / found[0]["mac"], percent)
    ]
    if not held:
        wrong(tuned, f"is {percent:g}, which no accepted iteration of {path} has", "mac_percent")
    return found, held[-1]


def latency(results: Path, network: str, method: str) -> Latency:
    """What `latency` measured; every network beside the baseline, on each runtime, size and layer."""
    path = results / "latency" / network / "latency.json"
    found: Latency = read(path, Latency)
    shares, timed, own = found["mac_percent"], found["networks"], found["layers"]
    for name in ("baseline", method, f"{method}, to {found['lanes']}"):
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
    if not any((row["network"], row["side"]) == (method, found["side"]) for row in timed):
        wrong(path, f"has no row of {method} at the side {found['side']}", "networks")
    first, second = ([row for row in own if row["network"] == name] for name in ("baseline", method))
    if not first or [row["layer"] for row in first] != [row["layer"] for row in second]:
        wrong(path, f"has other layers of baseline than of {method}", "layers")
    if len({row["layer"] for row in first}) < len(first) or len(first) + len(second) != len(own):
        wrong(path, f"has other rows than one for each layer of baseline and {method}", "layers")
    for number, row in enumerate(own):
        costs = row.keys() & {"mac", "bw", "inputs", "outputs"}
        if len(costs) != (0 if row["layer"] == own[len(first) - 1]["layer"] else 4):
            wrong(path, "has costs where it should have none, or lacks some", "layers", number)
    return found


def looks(results: Path, network: str) -> dict[str, tuple[str, float]]:
    """The test images to look at by rule, each with its PSNR drop."""
    path = results / "evaluate" / network / "looks.json"
    found: dict[str, tuple[str, float]] = read(path, Looks)
    drops = [found[rule][1] for rule in ("largest loss", "median", "largest gain") if rule in found]
    if drops != sorted(drops, reverse=True):
        wrong(path, "has a largest loss that is no largest, or a gain")
    return found


def trials(folder: Path) -> list[Trial]:
    """A study's trials that were finished or given up."""
    path = folder / "trials.json"
    found: list[Trial] = [trial for trial in read(path, list[Trial]) if trial["state"] in ("complete", "pruned")]
    for trial in found:
        needed = {"mac_percent"} | ({"feasible", "psnr_change"} if trial["state"] == "complete" else set())
        if needed - trial.keys():
            wrong(path, f"has no {', '.join(sorted(needed - trial.keys()))}", f"trial {trial['trial']}")
        if trial["params"].keys() != found[0]["params"].keys():
            wrong(path, "has other params than the first", f"trial {trial['trial']}")
    return found


def _equal(one: float, other: float) -> bool:
    """Equal but for rounding."""
    return abs(one - other) <= 1e-9 * max(1.0, abs(one), abs(other))
