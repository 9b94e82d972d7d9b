"""The types of the files in results/ that one stage writes and another reads, and the bounds of their numbers."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

LARGEST = 2**63 - 1
Text = Annotated[str, Field(strict=True)]
Whole = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
Number = Annotated[float, Field(strict=True, ge=-1e15, le=1e15, allow_inf_nan=False)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Psnr = Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]  # dB; equal images have 100
Ssim = Annotated[float, Field(strict=True, ge=-1.001, le=1.001, allow_inf_nan=False)]  # rounding may pass 1
Change = Annotated[float, Field(strict=True, ge=-100, le=100, allow_inf_nan=False)]  # dB or SSIM; plus is better
Figure = Annotated[float, Field(strict=True)]  # of a network that was rejected, perhaps because it is none (NaN)
Percent = Annotated[float, Field(strict=True, gt=0, le=100, allow_inf_nan=False)]  # of the baseline's
COSTS = ("mac", "weights", "activations", "bw")  # MACs and elements; bw: weights and activations


class Baseline(TypedDict):
    """train/NETWORK/metrics.json: quality on the validation images."""

    psnr: Psnr
    ssim: Ssim
    input_psnr: Psnr


class Point(TypedDict):
    """control/NETWORK: an entry of curve.json, and end.json, also of finetune; validation quality, and each image's."""

    steps: Whole
    psnr: Psnr
    ssim: Ssim
    image_psnr: Annotated[list[Psnr], Field(min_length=1)]
    image_ssim: Annotated[list[Ssim], Field(min_length=1)]


class Rate(TypedDict):
    """control/NETWORK/rate.json: what the rates of retrain and finetune are multiplied by."""

    factor: Annotated[float, Field(strict=True, gt=0, le=1)]


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
    cameras: NotRequired[Literal["one", "random"]]
    channels: NotRequired[Literal[1]]
    split: NotRequired[Text]  # absent: written before splits had names
    noise: NotRequired[Annotated[float, Field(strict=True, ge=0, le=255, allow_inf_nan=False)]]
    seed: NotRequired[Whole]


class Group(TypedDict):
    """One coupled group of groups.json."""

    name: Text
    channels: Count
    producers: list[Text]
    readers: list[Text]
    exact: NotRequired[bool]  # absent: true; false: under a normalisation, whose statistics change with it


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
    psnr_change: Change
    ssim_change: Change
    steps: Whole


class Difference(TypedDict):
    """A solution's PSNR less another's in dB, as metrics.Difference."""

    mean: Change
    low: Change
    high: Change
    worst: Change
    worst_name: Text


class Measured(TypedDict):
    """A solution on the test images; the input has no costs."""

    psnr: Psnr
    ssim: Ssim
    psnr_after_colour_fit: NotRequired[Psnr]  # of low light
    against_baseline: Difference
    against_control: Difference


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


class Solutions(TypedDict, extra_items=Solution):  # type: ignore[call-arg]
    """evaluate/NETWORK/metrics.json; a method is a further key."""

    input: Measured
    baseline: Solution
    control: Solution


class SetQuality(TypedDict):
    """Means over an extra test set, RGB and Y."""

    psnr: Psnr
    ssim: Ssim
    psnr_y: Psnr
    ssim_y: Ssim


class SetSolutions(TypedDict, extra_items=SetQuality):  # type: ignore[call-arg]
    """One extra test set of evaluate/NETWORK/sets.json; a method is a further key."""

    images: Count
    input: SetQuality
    baseline: SetQuality
    control: SetQuality


class Widths(TypedDict, extra_items=dict[Text, Count]):  # type: ignore[call-arg]
    """evaluate/NETWORK/widths.json: output channels by layer; a method is a further key."""

    baseline: dict[Text, Count]
    control: dict[Text, Count]


Sample = Annotated[tuple[Text, Change], Field(strict=False)]  # the test image's name, its PSNR change in dB


class ImageRow(TypedDict):
    """A row of evaluate/NETWORK/images.csv: a test image under a solution."""

    image: str
    solution: str
    psnr_change: Change  # dB against the baseline, with four decimals


# evaluate/NETWORK/samples.json: the test images that are shown, by why each one is (crops.SAMPLES)
Samples = TypedDict(
    "Samples", {"largest loss": Sample, "median": NotRequired[Sample], "largest gain": NotRequired[Sample]}, closed=True
)


class Timed(TypedDict):
    """One network's time and memory on one runtime, see network_times.measure."""

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
    simd_width: Count  # float32 numbers that the processor computes at once
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
