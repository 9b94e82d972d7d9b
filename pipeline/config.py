"""params.yaml as checked, typed objects: whatever is wrong with it is said in one sentence before anything runs.

The models below are the reference for every key: its type, its unit and its bounds.
"""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.errors import UserError
from pipeline.schema import checked, read_yaml, shown

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
RESERVED = ("baseline", "control", "input", "target")  # the table's other rows

# Upper bounds are far above what anyone trains with: they tell a slip of the finger before it ends in no memory
Count = Annotated[int, Field(ge=1, le=100_000)]
Side = Annotated[int, Field(ge=1, le=65_536)]  # pixels
Steps = Annotated[int, Field(ge=0, le=100_000_000)]
SomeSteps = Annotated[int, Field(ge=1, le=100_000_000)]
Rate = Annotated[float, Field(gt=0, le=10)]  # learning rate, or regularisation's strength at its largest
LastRate = Annotated[float, Field(ge=0, le=10)]
Scale = Annotated[float, Field(gt=0, le=1000)]  # of what is about 1 in use
Strength = Annotated[float, Field(ge=0, le=1000)]
Miss = Annotated[float, Field(ge=0, le=100)]  # dB, or SSIM
Drop = Annotated[float, Field(ge=-100, le=100)]  # dB, or SSIM
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Number = Annotated[int, Field(ge=1, le=9999)]  # of an image: its file name has four digits
Ratio = Annotated[float, Field(ge=1, le=300)]
Shot = Annotated[float, Field(gt=0, le=1)]
Span = Annotated[tuple[Number, Number], Field(strict=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Taught = Annotated[float, Field(ge=0, le=1)]  # share of the loss that is taken against the baseline's output; 0: none
Rule = Literal["adaptive", "depth", "efficiency", "balance"]
Criterion = Literal[
    "magnitude", "saliency", "l1", "l2", "random", "taylor", "mac_taylor", "obd", "apoz", "variance"
]  # pruning/criteria.py says what each is
CRITERIA: tuple[str, ...] = get_args(Criterion)


class Section(BaseModel):
    """A section of params.yaml: no unknown keys, no silent conversion of types, read-only once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Run(Section):
    """What the chain runs over."""

    networks: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    methods: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


RECOGNISED = "pipeline.networks.recognised:build"  # the factory of a network that is told by its file


class Network(Section):
    """How to build a network and what it restores."""

    factory: Text
    # instead of factory and args: weights that tell both, and are the baseline's (networks/recognised.py)
    file: Text | None = None
    args: dict[str, Any] = {}
    task: Literal["super_resolution", "low_light", "restoration"]  # restoration: same-size RGB, as denoising
    # output pixels per input pixel, along a side; no key of low_light, which goes from packed Bayer to twice its sides
    scale: Annotated[int, Field(ge=1, le=8)] = 2
    # of the network's images: 3 (RGB) or 1 (luma, see data/luma.py); no key of low_light, which reads packed Bayer
    channels: int = 3
    # of a forward that returns several tensors, the one that is trained and judged: its place from 0, or its key
    output: int | Text | None = None
    multiple: Annotated[int, Field(ge=1, le=128)] = 1  # `prepare` cuts pictures so that an input's sides are such

    @model_validator(mode="before")
    @classmethod
    def _recognised(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("file") is None:
            return values
        told = {"factory": RECOGNISED, "args": {"file": values["file"]}}
        for key in told.keys() & values.keys():
            if values[key] != told[key]:
                raise ValueError(f"file tells the network already; {key} isn't allowed beside it")
        return values | told

    @field_validator("output", mode="before")
    @classmethod
    def _place_or_key(cls, output: Any) -> Any:
        place = isinstance(output, int) and not isinstance(output, bool) and 0 <= output < 1000
        if output is None or place or (isinstance(output, str) and output):
            return output
        raise ValueError(f"it is {output!r}, but must be a place from 0 or a key of what the forward returns")

    @model_validator(mode="after")
    def _fits(self) -> Network:
        if self.task == "low_light" and "scale" in self.model_fields_set:
            raise ValueError("scale is no key of the task low_light, which always makes 2 pixels per input pixel")
        if self.task == "restoration" and self.scale != 1:
            raise ValueError(f"scale is {self.scale}, but restoration keeps an image's size: 1")
        if self.task == "low_light" and "channels" in self.model_fields_set:
            raise ValueError("channels is no key of the task low_light, which makes RGB of packed Bayer")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}, but a network has 3, which are RGB, or 1, which is luma")
        return self

    @property
    def input_channels(self) -> int:
        """Channels of the network's input; its output has `channels`."""
        return 4 if self.task == "low_light" else self.channels

    def sides(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        """Sides in input pixels, each rounded up to one that the network takes."""
        return tuple(dict.fromkeys(self.multiple * -(-side // self.multiple) for side in sides))


class Prepare(Section):
    """Where a network's images are, and what is made of them."""

    layout: Literal["photographs", "paired", "div2k", "sid"]
    # photographs: a folder of targets; paired: with inputs/ and targets/, pairs of one stem; both are divided by a
    # splits.json in it (of the targets' names), or by series. div2k, sid: as the archives unpack
    folder: Text
    train: Span = (1, 800)  # div2k: first and last number of the images; 1 to 800 are DIV2K_train_HR's
    validation: Span = (801, 810)
    test: Span = (811, 900)
    # synthetic low light, of photographs or div2k; two numbers each, lowest first
    ratio: Annotated[tuple[Ratio, Ratio], Field(strict=False)] = (100.0, 300.0)  # exposure ratios; SID clips at 300
    shot: Annotated[tuple[Shot, Shot], Field(strict=False)] = (1e-4, 0.012)  # λ_shot: variance a unit of signal
    # random: another one for each image, whose colours nobody could guess from noise; one: as one real sensor has them
    cameras: Literal["one", "random"] = "one"
    noise: Annotated[float, Field(gt=0, le=255)] | None = None  # restoration: σ of Gaussian noise, in 8-bit levels
    # more folders of targets to measure on, by name. Changed images in them are prepared anew by `dvc repro -f` alone
    test_sets: dict[str, Text] = {}

    @model_validator(mode="after")
    def _fits(self) -> Prepare:
        for key, layouts in LAYOUT_KEYS.items():
            if key in self.model_fields_set and self.layout not in layouts:
                raise ValueError(f"layout {self.layout} can't have {key}, which is for {_listed(layouts)}")
        for key in ("train", "validation", "test", "ratio", "shot"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} is [{low:g}, {high:g}], but the lowest must come first")
        for one, other in combinations(("train", "validation", "test"), 2):
            (low, high), (start, end) = getattr(self, one), getattr(self, other)
            if low <= end and start <= high:
                raise ValueError(f"{one} and {other} share image {max(low, start)}; no image may serve two splits")
        _names(self.test_sets, "test_sets")
        return self

    def check(self, task: str) -> None:
        """ValueError for keys that the network's task doesn't go with."""
        if self.layout not in TASK_LAYOUTS[task]:
            raise ValueError(f"layout is {self.layout!r}, but the task {task} has {_listed(TASK_LAYOUTS[task])}")
        keys = {"ratio": "low_light", "shot": "low_light", "cameras": "low_light", "noise": "restoration"}
        for key, its_task in keys.items():
            if key in self.model_fields_set and task != its_task:
                raise ValueError(f"{key} is for the task {its_task}, not {task}")
        noise_is_made = task == "restoration" and self.layout != "paired"
        if noise_is_made and self.noise is None:
            raise ValueError(f"noise is missing: with layout {self.layout}, restoration takes away noise made here")
        if self.test_sets and not noise_is_made and task != "super_resolution":
            raise ValueError("test_sets are folders of targets: for super_resolution and restoration of noise")


def _names(names: Any, key: str, taken: tuple[str, ...] = ()) -> None:
    """ValueError for a name that can't be a folder everywhere: where case doesn't count, A and a are one."""
    seen: dict[str, str] = {}
    for name in names:
        if not NAME.fullmatch(name) or name.lower() in taken:
            also = f", and {_listed(taken)} are taken" if taken else ""
            raise ValueError(f"{key} has the name {shown(name)}; letters, digits, - and _ make one, 64 at most{also}")
        if name.lower() in seen:
            raise ValueError(
                f"{key} has {seen[name.lower()]!r} and {name!r}, which are one folder where case doesn't count"
            )
        seen[name.lower()] = name


LAYOUT_KEYS = {  # key -> layouts that it goes with
    "train": ("div2k",), "validation": ("div2k",), "test": ("div2k",), "ratio": ("photographs", "div2k"),
    "shot": ("photographs", "div2k"), "cameras": ("photographs", "div2k"),
    "noise": ("photographs", "div2k"),
}  # fmt: skip
TASK_LAYOUTS = {
    "super_resolution": ("photographs", "paired", "div2k"),
    "low_light": ("photographs", "div2k", "sid"),
    "restoration": ("photographs", "paired", "div2k"),
}


class Train(Section):
    """One training recipe.

    checkpoint: a file of weights to take as the baseline instead of training one (networks/pretrained.py says
    which files fit). Pruning still trains by the recipe's other numbers. The path counts from the repository. DVC
    doesn't watch the file: when its contents change under the same name, `make repro` refuses to go on with the old
    baseline, and `dvc repro -s -f train@NETWORK` reads it anew.
    """

    checkpoint: Text | None = None
    steps: SomeSteps
    batch: Annotated[int, Field(ge=1, le=4096)]
    patch: Annotated[int, Field(ge=8, le=4096)]  # side of the input patch, in input pixels (LR or packed Bayer)
    lr: Rate
    lr_final: LastRate = 0.0  # cosine: the rate at the last step
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: Annotated[
        tuple[SomeSteps, ...], Field(strict=False)
    ] = ()  # step: where the rate is multiplied by decay
    decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    clip: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0  # largest gradient norm; 0: none
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay per step of the averaged weights; 0: none
    validate_every: SomeSteps  # the last step is validated anyway

    @model_validator(mode="after")
    def _fits(self) -> Train:
        if self.batch * self.patch**2 > MAX_PIXELS:
            raise ValueError(
                f"batch is {self.batch} and patch {self.patch}, but batch × patch² may be {MAX_PIXELS} pixels at most"
            )
        for key, schedule in (("milestones", "step"), ("decay", "step"), ("lr_final", "cosine")):
            if key in self.model_fields_set and self.schedule != schedule:
                raise ValueError(f"{key} is for the schedule {schedule!r}, not {self.schedule!r}")
        for before, milestone in pairwise((0, *self.milestones)):
            if milestone <= before:
                raise ValueError(f"milestones has {milestone} after {before}, but they must rise")
        if self.milestones and self.milestones[-1] >= self.steps:
            raise ValueError(f"milestones has {self.milestones[-1]}, but training ends at step {self.steps}")
        _falls(self.lr, self.lr_final, "lr")
        return self


def _falls(first: float, last: float, key: str) -> None:
    if last > first:
        raise ValueError(f"{key}_final is {last:g}, but at most {key}, {first:g}, is allowed: the rate falls")


MAX_PIXELS = 2**28  # of the input patches of one step: some gigabytes of images alone


class Analyze(Section):
    """The input size at which costs are counted, in input pixels: height, width."""

    size: Annotated[tuple[Side, Side], Field(strict=False)]


class Retrain(Section):
    """What each pruning iteration trains for one network, and the control as well, with nothing removed."""

    max_iterations: Count  # of pruning, and exactly so many of the control
    steps: Steps
    lr: Rate  # constant; the averaged weights are measured, and the fine-tune alone anneals
    teacher: Taught = 0.0


class Settings(Section):
    """The settings of the pruning rules: `prune` holds the common ones, a method's overrides change some of them."""

    threshold_scale: Scale  # alpha at the first iteration
    threshold_growth: Scale  # relative growth of alpha after an accepted iteration
    max_share: Annotated[float, Field(gt=0, le=1)]  # of a group's channels that one iteration may remove
    patience: Count  # rejections in a row after which pruning stops
    target_mac: Share  # share of the baseline's MACs at which pruning stops
    sparsity: Strength  # strength of the group lasso
    imbalance: Strength  # strength of the variance of the groups' mean magnitudes; under `balance` alone
    depth_channels: Count  # n_min: channels that a group keeps under `depth`
    depth_share: Share  # rho: share of its channels that a group keeps under `depth`
    efficiency_power: Annotated[float, Field(ge=0, le=10)]  # beta
    efficiency_range: Annotated[tuple[Scale, Scale], Field(strict=False)]
    balance_strength: Strength  # gamma
    balance_range: Annotated[tuple[Scale, Scale], Field(strict=False)]
    # what a channel's importance is: magnitude, the paper's, which is 1 on average; else its rank, in which
    # threshold_scale is twice the share of the MACs that lie below it
    criterion: Criterion = "magnitude"
    # whether the layers that read a removed channel make up for it, by least squares on training images
    reconstruct: bool = False
    # whether channels may go that a normalisation takes its statistics over: the smaller network's are over those that
    # stay, so that it isn't equal to the whole one without the channels, and the gate alone judges (pruning/norms.py)
    norms: bool = False
    align: Annotated[int, Field(ge=1, le=4096)] = (
        1  # a group keeps a multiple of so many channels in each of its layers, rounded up; 1: any number
    )

    @model_validator(mode="after")
    def _ordered(self) -> Settings:
        for key in ("efficiency_range", "balance_range"):
            low, high = getattr(self, key)
            if not low <= 1 <= high:
                raise ValueError(f"{key} must hold 1 between its two numbers, lowest first")
        return self


class Method(Section):
    """A method: its set of rules, and what it sets differently from `prune`."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1, strict=False)]
    overrides: dict[str, Any] = {}
    networks: dict[str, dict[str, Any]] = {}  # what one network is pruned by differently again; a study's winner

    @model_validator(mode="after")
    def _adapts(self) -> Method:
        if len(set(self.rules)) < len(self.rules):
            raise ValueError(f"rules has {max(self.rules, key=self.rules.count)!r} twice")
        if "adaptive" not in self.rules:
            raise ValueError("rules must contain 'adaptive': without it the threshold never moves")
        return self


class Gate(Section):
    """What the final network must hold, on validation images; iterations may miss it by `tolerance`."""

    reference: Literal["best", "baseline", "control"]  # best: at each point the better of the two
    max_psnr_drop: Drop  # dB; negative: a gain is asked for
    max_ssim_drop: Drop
    # one-sided: how sure it must be, by a bootstrap over validation images, that no more is lost than allowed; null:
    # the means decide
    confidence: Annotated[float, Field(ge=0.5, lt=1)] | None = None

    @property
    def reference_name(self) -> str:
        """The reference in words."""
        return {"best": "the better of baseline and control"}.get(self.reference, f"the {self.reference}")


class Tolerance(Section):
    """What an iteration may miss the gate by. The fine-tune must make up for it, or channels are given back."""

    psnr: Miss  # dB
    ssim: Miss


class Finetune(Section):
    """The last training of a pruned network."""

    steps: SomeSteps
    lr: Rate
    lr_final: LastRate = 0.0
    teacher: Taught = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Finetune:
        _falls(self.lr, self.lr_final, "lr")
        return self


class Evaluate(Section):
    """The test-set statistics."""

    bootstrap: Annotated[int, Field(ge=100, le=100_000)]  # resamples of the paired bootstrap


class Latency(Section):
    """What is timed beside the counted costs: one square image, on `threads` threads and on a GPU if there is one."""

    sides: Annotated[
        tuple[Annotated[int, Field(ge=16, le=8192, multiple_of=16)], ...],
        Field(min_length=1, max_length=32, strict=False),
    ]
    repeats: Annotated[int, Field(ge=1, le=1000)]  # rounds, of which the median counts


class Report(Section):
    """What the report shows of one method more than of the others."""

    method: str  # of run.methods: the one that is timed, and whose figures the report draws
    crop: Annotated[int, Field(ge=16, le=4096)]  # side of the figures' crops, in output pixels


class Range(Section):
    """Where a study looks for one setting of `prune`."""

    low: Finite
    high: Finite
    log: bool = False  # whether ratios count, and not differences

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g}, but it must be less than high, {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}, but a range with log: true begins above 0")
        return self


class Search(Section):
    """An Optuna study: which settings of `prune` keep fewest MACs at no drop."""

    network: str
    method: str
    trials: Count
    ssim: bool  # whether SSIM must hold as well, as the chain's gate asks
    space: Annotated[dict[str, Range], Field(min_length=1)]  # keys of `prune`

    @model_validator(mode="after")
    def _searchable(self) -> Search:
        for key, span in self.space.items():
            if key not in SEARCHABLE:
                raise ValueError(f"space has {shown(key)}, which can't be searched; {_listed(SEARCHABLE)} can")
            if whole_number(key) and not (span.low.is_integer() and span.high.is_integer()):
                raise ValueError(f"space.{key} goes from {span.low:g} to {span.high:g}, but it is a whole number")
        return self


# all that are single numbers, but for `align`, which the hardware gives
SEARCHABLE = tuple(
    key
    for key in Settings.model_fields
    if key not in ("efficiency_range", "balance_range", "criterion", "reconstruct", "norms", "align")
)


def whole_number(key: str) -> bool:
    """Whether a setting of `prune` is a count."""
    return key in ("patience", "depth_channels")


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    device: Literal["auto", "cpu", "cuda"]
    devices: Annotated[int, Field(ge=1, le=1024)] = 1  # that share the batches of a training, a process each
    threads: Annotated[int, Field(ge=1, le=1024)]  # of one process; bits are equal only at equal thread counts
    precision: Literal["auto", "fp32", "bf16"]  # of the multiplications while training; quality is always fp32
    run: Run
    networks: dict[str, Network]
    prepare: dict[str, Prepare]
    train: dict[str, Train]
    analyze: dict[str, Analyze]
    retrain: dict[str, Retrain]
    prune: Settings
    methods: dict[str, Method]
    gate: Gate
    tolerance: dict[str, Tolerance]
    finetune: dict[str, Finetune]
    evaluate: Evaluate
    latency: Latency
    report: Report
    search: Search

    @model_validator(mode="before")
    @classmethod
    def _baselines(cls, values: Any) -> Any:
        """Weights that tell a network are its baseline's, where `train` names no others."""
        try:
            files = {name: section["file"] for name, section in values["networks"].items() if "file" in section}
            known = {
                name: {"checkpoint": files[name]} | values["train"][name]
                for name in files.keys() & values["train"].keys()
            }
            return values | {"train": values["train"] | known} if known else values
        except (AttributeError, KeyError, TypeError):  # other shapes than those of sections are said below
            return values

    @model_validator(mode="after")
    def _complete(self) -> Params:
        for key, names in (("run.networks", self.run.networks), ("run.methods", self.run.methods)):
            if len(set(names)) < len(names):
                raise ValueError(f"{key} names {max(names, key=names.count)!r} twice")
        for key, named in (("networks", self.networks), ("methods", self.methods)):
            _names(named, key, RESERVED)  # they become folders, DVC stages and names of runs
        for network, section in self.prepare.items():  # each is a stage of dvc.yaml, which needs train.NETWORK too
            for key, owner in (("networks", self.networks), ("train", self.train)):
                if network not in owner:
                    raise ValueError(f"prepare has {shown(network)}, which {key} doesn't have; it has {_listed(owner)}")
            try:
                section.check(self.networks[network].task)
            except ValueError as error:
                raise ValueError(f"prepare.{network}: {error}") from None
        sections: dict[str, dict[str, Any]] = {
            "networks": self.networks, "prepare": self.prepare, "train": self.train, "analyze": self.analyze,
            "retrain": self.retrain, "tolerance": self.tolerance, "finetune": self.finetune,
        }  # fmt: skip
        for network in self.run.networks:
            missing = [key for key, section in sections.items() if network not in section]
            missing = missing[:1] if "networks" in missing else missing  # a slip of the pen
            if missing:
                has = _listed(sections[missing[0]])
                others = f", nor {', '.join(missing[1:])}; python -m stages.add writes them all" if missing[1:] else ""
                raise ValueError(
                    f"run.networks names {shown(network)}, which {missing[0]} doesn't have; it has {has}{others}"
                )
            batch = self.train[network].batch
            if batch % self.devices:
                fits = ", ".join(str(number) for number in range(1, batch + 1) if batch % number == 0)
                raise ValueError(
                    f"devices is {self.devices}, which can't share train.{network}.batch, {batch}, equally; {fits} can"
                )
        for method in self.run.methods:
            if method not in self.methods:
                raise ValueError(
                    f"run.methods names {shown(method)}, which methods doesn't have; it has {_listed(self.methods)}"
                )
        for key, name, where, allowed in (
            ("report.method", self.report.method, "run.methods", self.run.methods),
            ("search.network", self.search.network, "networks", self.networks),
            ("search.method", self.search.method, "methods", self.methods),
        ):
            if name not in allowed:
                raise ValueError(f"{key} is {shown(name)}, which {where} doesn't have; it has {_listed(allowed)}")
        return self

    def require(self, network: str, *keys: str) -> None:
        """UserError unless a network has its section in each of these keys; all that stages read when none is named."""
        sections: dict[str, dict[str, Any]] = {
            "prepare": self.prepare, "train": self.train, "analyze": self.analyze,
            "retrain": self.retrain, "tolerance": self.tolerance, "finetune": self.finetune,
        }  # fmt: skip
        for key in keys or sections:
            if network not in sections[key]:
                raise UserError(f"network {network!r} isn't in {key}, which has {', '.join(sections[key])}")

    def settings(self, method: str, network: str) -> Settings:
        """What a network is pruned by: `prune`, with the method's overrides, with those for this network alone."""
        common = self.prune.model_dump() | self.methods[method].overrides
        own = self.methods[method].networks.get(network, {})
        checked(Settings, common, f"methods.{method}.overrides")
        return checked(Settings, common | own, f"methods.{method}.networks.{network}")

    def norms(self, network: str) -> bool:
        """Whether a method that runs may remove a network's channels under a normalisation."""
        return any(self.settings(method, network).norms for method in self.run.methods)


def checked_settings(settings: Settings, changes: dict[str, float]) -> Settings:
    """The settings with some of them changed; UserError when one isn't allowed."""
    return checked(Settings, settings.model_dump() | changes, "prune")


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"


def read(path: Path = Path("params.yaml")) -> Params:
    """Read and check a parameter file; UserError with one sentence on the first fault."""
    return checked_params(read_yaml(path), str(path))


def checked_params(values: Any, where: str) -> Params:
    """Values as parameters; UserError, begun by `where`, with one sentence on the first fault."""
    if not isinstance(values, dict):
        raise UserError(f"{where} must hold the sections {', '.join(Params.model_fields)}")
    params = checked(Params, values, where)
    for name, method in params.methods.items():
        for network in params.networks:
            params.settings(name, network)
        for network in method.networks:
            if network not in params.networks:
                has = _listed(params.networks)
                raise UserError(
                    f"{where}: methods.{name}.networks has {shown(network)}, which networks doesn't have; it has {has}"
                )
    searched = params.settings(params.search.method, params.search.network).model_dump()
    for key, span in params.search.space.items():
        for end in (span.low, span.high):
            changed = {key: int(end) if whole_number(key) else end}
            checked(Settings, searched | changed, f"{where}: search.space")
    return params
