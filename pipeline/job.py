"""What a pruning run works on and by: the same for every method of a network."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline import config, cost, quality
from pipeline.data.patches import load_images
from pipeline.device import Machine, choose
from pipeline.errors import UserError, explained, under
from pipeline.networks import affordable, build, duplicate, gigabytes, memory
from pipeline.tracing import follow
from pipeline.training import backward, forward

if TYPE_CHECKING:
    from pipeline.data.layouts import Part

SIZES = 64  # of pictures that a network is tried on without their pixels, some 0.03 s each


@dataclass(frozen=True)
class Job:
    """What a pruning run works on and by; the same for every method of a network."""

    name: str  # of the network in params.yaml
    network: config.Network
    train: Any  # data.patches.Images
    validation: Any
    recipe: config.Train
    retrain: config.Retrain
    gate: config.Gate
    machine: Machine
    size: tuple[int, int]  # input height and width at which costs are counted
    seed: int

    @property
    def shave(self) -> int:
        return quality.border(self.network.task, self.network.scale)

    @property
    def iteration_steps(self) -> int:
        return self.retrain.train_steps + self.retrain.retrain_steps

    @property
    def loan(self) -> tuple[float, float]:
        return self.retrain.psnr_loan, self.retrain.ssim_loan

    def cost(self, network: nn.Module) -> cost.Cost:
        return cost.measure(network, self.size, channels(self.network))

    def example(self, network: nn.Module | None = None) -> Tensor:
        """The image that the network is traced with: any size gives the same groups, if the network can take it."""
        return example(self.network, self.recipe, network)

    def check(self, network: nn.Module) -> None:
        """UserError unless the network can be trained by this job, and measured on its validation images."""
        check(self.name, self.network, self.example(network), network, self.machine.bf16)
        check_patch(self.name, self.network, self.recipe, network)
        check_size(self.name, self.network, self.size, network)
        check_images(self.name, self.network, self.validation.sizes, self.validation.names, network)

    def quality(self, network: nn.Module) -> quality.Quality:
        return quality.measure(network, self.validation, self.shave)

    def validate(self, network: nn.Module) -> float:
        return quality.measure(network, self.validation, self.shave, with_ssim=False).mean_psnr


def channels(section: config.Network) -> int:
    """Channels of the network's input: packed Bayer or RGB."""
    return 4 if section.task == "low_light" else 3


def example(section: config.Network, recipe: config.Train, network: nn.Module | None = None) -> Tensor:
    """A black input of the network's task: [1, channels, side, side] in float32.

    The side is a multiple of the patch's that isn't small; of a large patch 64 pixels do, if the network takes them.
    """
    side = recipe.patch * math.ceil(16 / recipe.patch)
    if side > 64:
        fits = network is None or not _misfit(section, (1, 64, 64), network)
        side = 64 if fits else side
    return torch.zeros(1, channels(section), side, side, dtype=torch.float32)  # whatever a user's module has made usual


def check(name: str, section: config.Network, example: Tensor, network: nn.Module, bf16: bool = False) -> None:
    """UserError unless the network can be trained, traced and counted, and makes of an input what its task asks for.

    One forward, one training step without an update and one trace, of an input of the example's shape. The network is
    left in evaluation mode, its tensors and the random state as they were. bf16: as in `training.fit`.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"networks.{name}: the network of {section.factory!r} has no parameter that can be trained")
    for key, parameter in network.named_parameters():
        if not parameter.is_floating_point():
            raise UserError(f"networks.{name}: parameter {key} holds {parameter.dtype}; a buffer may, but no parameter")
    check_output(name, section, example, network)
    with under(f"networks.{name}"):
        if not cost.measure(network, tuple(example.shape[2:]), example.shape[1]).mac:
            raise UserError(f"the network of {section.factory!r} has no 2-D convolution: there are no MACs to save")
        _step(network, section, example, bf16)
        follow(network, example)


def check_output(name: str, section: config.Network, example: Tensor, network: nn.Module) -> None:
    """UserError unless the network, in evaluation mode, makes of an input what its task asks for."""
    wanted = (1, 3, section.scale * example.shape[2], section.scale * example.shape[3])
    needed = (
        f"networks.{name}: of an input {tuple(example.shape)} the task {section.task} with scale {section.scale} "
        f"needs an output {wanted} in torch.float32, but"
    )
    try:
        with torch.random.fork_rng(devices=[]), explained(f"{needed} it fails"), torch.no_grad():
            output = network.eval()(_varied(example))
    except UserError as error:
        raise UserError(f"{error}{_multiple_of(section, network)}") from error
    if not isinstance(output, Tensor):
        raise UserError(f"{needed} it gives no tensor, but a {type(output).__name__}")
    if output.shape != wanted or output.dtype != torch.float32:
        raise UserError(f"{needed} it gives {tuple(output.shape)} {output.dtype}")
    if not output.isfinite().all():
        raise UserError(f"{needed} it gives infinite values or NaN")


def _varied(example: Tensor) -> Tensor:
    """An image of that shape with black, white and between."""
    image = torch.rand(example.shape, generator=torch.Generator().manual_seed(0), dtype=example.dtype)
    quarter = example.shape[2] // 4
    image[:, :, :quarter], image[:, :, -quarter:] = 0.0, 1.0
    return image


def _step(network: nn.Module, section: config.Network, example: Tensor, bf16: bool) -> None:
    """A training step of two images as `training.fit` does it, up to the update, on a copy of the network."""
    with explained(f"the network {type(network).__name__} can't be copied and put into training mode"):
        network = duplicate(network).to(memory_format=torch.channels_last).train()
    image = _varied(example).repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    target = torch.zeros(2, 3, section.scale * example.shape[2], section.scale * example.shape[3])
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = forward(network, image, target, 0)
            backward(network, (output.float() - target).abs().mean())
    finally:
        random.setstate(state)
    for key, parameter in network.named_parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise UserError(f"parameter {key} gets a sparse gradient, which Adam doesn't take")
    if all(parameter.grad is None for parameter in network.parameters()):
        raise UserError(f"no parameter of {type(network).__name__} gets a gradient from its output in training")


def _misfit(section: config.Network, size: tuple[int, int, int], network: nn.Module) -> str:
    """Why the network doesn't make what its task asks for of inputs of that batch, height and width; empty if it does.

    Only shapes are computed, so that no size is too large.
    """
    batch, height, width = size
    wanted = (batch, 3, section.scale * height, section.scale * width)
    try:
        made = cost.shape(network, (batch, channels(section), height, width))
    except UserError as error:
        return str(error)
    return "" if made == wanted else f"{type(network).__name__} makes {made} and not {wanted}"


def _multiple_of(section: config.Network, network: nn.Module) -> str:
    """What the sides must be multiples of, in words; empty when that isn't the reason."""

    def takes(height: int, width: int) -> bool:
        return not _misfit(section, (1, height, width), network)

    # a look at multiples of many numbers, since a search in a network that takes nothing is long
    found = cost.multiple(takes) if any(takes(side, side) for side in (120, 128, 144, 168, 176, 192, 208, 224)) else 0
    return f"; the network takes heights and widths that are multiples of {found}" if found and found > 1 else ""


def _cut(name: str, hint: str) -> str:
    """How to make pictures fit, where a multiple is all that they lack."""
    number = hint.rpartition(" ")[2]
    return f", and networks.{name}.multiple: {number} makes `prepare` cut pictures to such" if hint else ""


def check_patch(name: str, section: config.Network, recipe: config.Train, network: nn.Module) -> None:
    """UserError unless the network takes patches of the training's size, and a batch of them fits in memory."""
    side, batch = recipe.patch, recipe.batch
    pixels = 4 * batch * side**2 * (channels(section) + 3 * section.scale**2)  # bytes of inputs and targets
    reason = _misfit(section, (1, side, side), network)
    if reason:
        raise UserError(f"train.{name}.patch is {side}, but {reason}{_multiple_of(section, network)}")
    spent = cost.measure(network, (side, side), channels(section))
    weights = 4 * sum(p.nbytes for p in network.parameters() if p.requires_grad)  # with gradients, and Adam's two
    # What goes into each convolution waits for the way back: about half of the activations, 2 bytes each in bfloat16.
    _fits_memory(f"train.{name}: batch {batch} of patch {side}", pixels + weights + batch * spent.activations)


def check_images(
    name: str, section: config.Network, sizes: Sequence[tuple[int, int]], names: Sequence[str], network: nn.Module
) -> None:
    """UserError unless the network takes whole pictures of these sizes (height and width of the input, in pixels)."""
    if not len(sizes):
        return
    first = {tuple(map(int, size)): picture for size, picture in zip(reversed(sizes), reversed(names), strict=True)}
    some = sorted(first)[:: len(first) // SIZES + 1]  # photographs may all differ in size
    for height, width in some:
        picture, reason = first[height, width], _misfit(section, (1, height, width), network)
        if reason:
            hint = _multiple_of(section, network)
            raise UserError(
                f"networks.{name}: of {picture}, an input of {width}×{height} pixels, nothing can be made: {reason}"
                f"{hint}{_cut(name, hint)}"
            )
    (height, width), picture = max(first.items(), key=lambda one: one[0][0] * one[0][1])
    _fits_memory(f"networks.{name}: {picture}", _frame(section, (height, width), network))


def check_sides(section: config.Network, sides: Sequence[int], network: nn.Module) -> None:
    """UserError unless the network takes square images of these sides, in pixels, which are to be timed."""
    for side in sides:
        reason = _misfit(section, (1, side, side), network)
        if reason:
            raise UserError(f"latency.sides has {side}: {reason}{_multiple_of(section, network)}")
        _fits_memory(f"latency.sides: {side}", _frame(section, (side, side), network))


def check_size(name: str, section: config.Network, size: tuple[int, int], network: nn.Module) -> None:
    """UserError unless the network takes an image of the size, height and width, at which costs are counted."""
    reason = _misfit(section, (1, *size), network)
    if reason:
        raise UserError(f"analyze.{name}.size is {list(size)}, but {reason}{_multiple_of(section, network)}")


def _frame(section: config.Network, size: tuple[int, int], network: nn.Module) -> int:
    """Bytes that one image takes at least: what goes into and comes out of the network's widest layer, in float32."""
    return 4 * max((layer.activations for layer in cost.measure(network, size, channels(section)).layers), default=0)


def _fits_memory(what: str, needed: int) -> None:
    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    there = max(memory(), gpu)
    if needed > there:
        raise UserError(f"{what} takes at least {gigabytes(needed)} of memory, but this machine has {gigabytes(there)}")


def tried(params: config.Params, network: str, parts: Mapping[str, Part]) -> nn.Module:
    """A network of params.yaml, built; UserError when the chain can't train, trace, count or measure it.

    parts: what `prepare` will make, from headers alone (data.layouts.find).
    """
    machine = choose(params.device, params.threads, params.precision)
    section, recipe = params.networks[network], params.train[network]
    affordable(section.factory, section.args)
    net = build(section.factory, section.args)
    check(network, section, example(section, recipe, net), net, machine.bf16)
    check_patch(network, section, recipe, net)
    check_size(network, section, params.analyze[network].size, net)
    check_sides(section, params.latency.sides, net)
    for split, part in parts.items():
        if split != "train":  # of which nothing but patches is shown
            check_images(network, section, part.sizes, [source.name for source in part.sources], net)
    resamples, images = params.evaluate.bootstrap, len(parts["test"].sizes)
    _fits_memory(f"evaluate.bootstrap: {resamples} of {images} test images", 16 * resamples * images)  # int64, float64
    return net


def load_job(params: config.Params, network: str, results: Path) -> Job:
    """The job of one network: its recipes, the machine, and the images that `prepare` left in `results`."""
    machine = choose(params.device, params.threads, params.precision)
    data = results / "prepare" / network
    return Job(
        name=network,
        network=params.networks[network],
        train=load_images(data / "train", machine.device),
        validation=load_images(data / "validation", machine.device),
        recipe=params.train[network],
        retrain=params.prune.networks[network],
        gate=params.gate,
        machine=machine,
        size=params.analyze[network].size,
        seed=params.seed * 1_000_003,
    )
