"""What is tried before anything trains: whether a network can be built, trained, traced, counted and measured.

And, once it is trained or read, whether the baseline is fit to be pruned.
"""

from __future__ import annotations

import contextlib
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline import config, cost
from pipeline.errors import UserError, explained, under
from pipeline.evaluation.metrics import Quality
from pipeline.files import digest
from pipeline.networks import affordable, build, checkpoint, duplicate, gigabytes, memory, rebuilt
from pipeline.networks.pretrained import measured_range
from pipeline.pruning import criteria
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.tracing import follow
from pipeline.training.device import choose
from pipeline.training.loop import backward, forward
from pipeline.training.setup import Setup, example, misfit

if TYPE_CHECKING:
    from pipeline.prepare.layouts import Part

SIZES = 64  # of images that a network is tried on without their pixels, some 0.03 s each


def check_trainable(setup: Setup, network: nn.Module) -> None:
    """UserError unless the network can be trained by its set-up, and measured on the validation images."""
    check(setup.name, setup.network, setup.example(network), network, setup.machine.bf16)
    check_patch(setup.name, setup.network, setup.recipe, network)
    check_size(setup.name, setup.network, setup.size, network)
    check_images(setup.name, setup.network, setup.validation.sizes, setup.validation.names, network)


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
        if not cost.measure(network, (example.shape[2], example.shape[3]), example.shape[1]).mac:
            raise UserError(f"the network of {section.factory!r} has no 2-D convolution: there are no MACs to save")
        _step(network, section, example, bf16)
        follow(network, example)


def check_output(name: str, section: config.Network, example: Tensor, network: nn.Module) -> None:
    """UserError unless the network, in evaluation mode, makes of an input what its task asks for."""
    shape = (1, section.channels, section.scale * example.shape[2], section.scale * example.shape[3])
    needed = (
        f"networks.{name}: of an input {tuple(example.shape)} the task {section.task} with scale {section.scale} "
        f"needs an output {shape} in torch.float32, but"
    )
    try:
        with torch.random.fork_rng(devices=[]), explained(f"{needed} it fails"), torch.no_grad():
            output = network.eval()(_varied(example))
    except UserError as error:
        if hint := _other_channels(name, section, example, network):
            raise UserError(hint) from error
        sentence = str(error) if str(error).startswith(needed) else f"networks.{name}: {error}"
        raise UserError(
            f"{sentence}{_multiple_of(name, section, network, f', as train.{name}.patch must be')}"
        ) from error
    if not isinstance(output, Tensor):
        several = isinstance(output, list | tuple | dict) and section.output is None
        hint = "; output: 0, or a key, says which of its tensors is trained and judged" if several else ""
        raise UserError(f"{needed} it gives no tensor, but a {type(output).__name__}{hint}")
    if output.shape != shape and (hint := _other_channels(name, section, example, network)):
        raise UserError(hint)
    if output.shape != shape or output.dtype != torch.float32 or not rebuilt.dense(output):
        kind = "" if output.layout == torch.strided else f", {str(output.layout).removeprefix('torch.')}"
        kind += ", on the meta device, without values" if output.is_meta else ""
        raise UserError(f"{needed} it gives {tuple(output.shape)} {output.dtype}{kind}")
    if not output.isfinite().all():
        raise UserError(f"{needed} it gives infinite values or NaN")


def _other_channels(name: str, section: config.Network, example: Tensor, network: nn.Module) -> str:
    """A sentence on a network of the other number of channels, 1 or 3; empty where that isn't what is wrong."""
    if section.task == "low_light":
        return ""
    size = (1, *example.shape[2:])
    other = section.model_copy(update={"channels": 4 - section.channels})
    if not misfit(section, size, network) or misfit(other, size, network):
        return ""
    kinds = {1: "one channel", 3: "three channels"}
    return (
        f"networks.{name}: the network takes and makes images of {kinds[other.channels]}, but channels is "
        f"{section.channels}; channels: {other.channels} fits it"
    )


def _varied(example: Tensor) -> Tensor:
    """An image of that shape with black, white and between."""
    image = torch.rand(example.shape, generator=torch.Generator().manual_seed(0), dtype=example.dtype)
    quarter = example.shape[2] // 4
    image[:, :, :quarter], image[:, :, -quarter:] = 0.0, 1.0
    return image


def _step(network: nn.Module, section: config.Network, example: Tensor, bf16: bool) -> None:
    """A training step of two images as `training.fit` does it, up to the update, on a copy of the network."""
    with explained(f"the network {type(network).__name__} can't be copied and put into training mode"):
        network = duplicate(network).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    image = _varied(example).repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    target = torch.zeros(2, section.channels, section.scale * example.shape[2], section.scale * example.shape[3])
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


def multiple(section: config.Network, network: nn.Module) -> int | None:
    """What the sides of the network's input must be multiples of; None where it takes nothing."""

    def takes(height: int, width: int) -> bool:
        return not misfit(section, (1, height, width), network)

    # first some multiples of many numbers, because a search in a network that takes nothing is long
    promising = any(takes(side, side) for side in (120, 128, 144, 168, 176, 192, 208, 224))
    return cost.multiple(takes) if promising else None


def _multiple_of(name: str, section: config.Network, network: nn.Module, more: str = "") -> str:
    """What the sides must be multiples of, in words, and the key that says so; empty when that isn't the reason."""
    number = multiple(section, network)
    if not number or number == 1:
        return ""
    told = section.multiple % number == 0
    key = "" if told else f", and networks.{name}.multiple: {number} makes `prepare` cut images to such"
    return f"; the network takes heights and widths that are multiples of {number}{more}{key}"


def check_patch(name: str, section: config.Network, recipe: config.Train, network: nn.Module) -> None:
    """UserError unless the network takes patches of the training's size, and a batch of them fits in memory."""
    side, batch = recipe.patch, recipe.batch
    channels = section.input_channels
    pixels = 4 * batch * side**2 * (channels + section.channels * section.scale**2)  # bytes of inputs and targets
    reason = misfit(section, (1, side, side), network)
    if reason:
        raise UserError(f"train.{name}.patch is {side}, but {reason}{_multiple_of(name, section, network)}")
    spent = cost.measure(network, (side, side), channels)
    weights = 4 * sum(p.nbytes for p in network.parameters() if p.requires_grad)  # with gradients, and Adam's two
    # What goes into each convolution waits for the way back: about half of the activations, 2 bytes each in bfloat16.
    _fits_memory(f"train.{name}: batch {batch} of patch {side}", pixels + weights + batch * spent.activations)


def check_images(
    name: str, section: config.Network, sizes: Sequence[tuple[int, int]], names: Sequence[str], network: nn.Module
) -> None:
    """UserError unless the network takes whole images of these sizes (height and width of the input, in pixels)."""
    if not len(sizes):
        return
    first = {tuple(map(int, size)): image for size, image in zip(reversed(sizes), reversed(names), strict=True)}
    some = sorted(first)[:: len(first) // SIZES + 1]  # photographs may all differ in size
    for height, width in some:
        image, reason = first[height, width], misfit(section, (1, height, width), network)
        if reason:
            raise UserError(
                f"networks.{name}: of {image}, an input of {width}×{height} pixels, nothing can be made: {reason}"
                f"{_multiple_of(name, section, network)}"
            )
    (height, width), image = max(first.items(), key=lambda one: one[0][0] * one[0][1])
    _fits_memory(f"networks.{name}: {image}", _frame(section, (height, width), network))


def check_sides(name: str, section: config.Network, sides: Sequence[int], network: nn.Module) -> None:
    """UserError unless the network takes square images of these sides, in pixels, which are to be timed.

    Those of a network with a `multiple` are rounded up to it first, as `latency` does.
    """
    for side in section.sides(tuple(sides)):
        reason = misfit(section, (1, side, side), network)
        if reason:
            raise UserError(f"latency.sides has {side}: {reason}{_multiple_of(name, section, network)}")
        _fits_memory(f"latency.sides: {side}", _frame(section, (side, side), network))


def check_size(name: str, section: config.Network, size: tuple[int, int], network: nn.Module) -> None:
    """UserError unless the network takes an image of the size, height and width, at which costs are counted."""
    reason = misfit(section, (1, *size), network)
    if reason:
        raise UserError(f"analyze.{name}.size is {list(size)}, but {reason}{_multiple_of(name, section, network)}")


def _frame(section: config.Network, size: tuple[int, int], network: nn.Module) -> int:
    """Bytes that one image takes at least: what goes into and comes out of the network's widest layer, in float32."""
    spent = cost.measure(network, size, section.input_channels)
    return 4 * max((layer.activations for layer in spent.layers), default=0)


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
    net = build(section.factory, section.args, section.output)
    image = example(section, recipe, net)
    check(network, section, image, net, machine.bf16)
    rebuilt.check(section.factory, section.args, net, image)
    check_patch(network, section, recipe, net)
    check_size(network, section, params.analyze[network].size, net)
    check_sides(network, section, params.latency.sides, net)
    if "apoz" in {params.settings(method, network).criterion for method in params.run.methods}:
        criteria.check("apoz", net, find_groups(net, image, params.norms(network)), image, network)
    for split, part in parts.items():
        if split != "train":  # of which nothing but patches is shown
            check_images(network, section, part.sizes, [source.name for source in part.sources], net)
    resamples, images = params.evaluate.bootstrap, len(parts["test"].sizes)
    _fits_memory(f"evaluate.bootstrap: {resamples} of {images} test images", 16 * resamples * images)  # int64, float64
    return net


def check_code(name: str, section: config.Network, baseline: Path) -> None:
    """UserError when a user's network computes something else than when the baseline in this file was made.

    DVC doesn't watch the file of a factory's function; it does watch this project's own networks.
    """
    try:
        made_of = checkpoint.metadata(baseline)
    except UserError:  # no baseline yet, or a damaged one: DVC makes it
        return
    if ":" in section.factory and (made_of["name"], made_of["args"]) == (section.factory, section.args):
        with under(f"networks.{name}"):
            checkpoint.load(baseline, section.factory)


def check_unchanged(name: str, section: config.Network, weights: str, baseline: Path) -> None:
    """UserError when given weights aren't those that the baseline in this file was made of.

    DVC compares the path in params.yaml and not the file behind it: it could watch one only if one were always named.
    """
    source: dict[str, str] = {}
    with contextlib.suppress(UserError):  # no baseline yet, or one of another network: DVC makes it
        source = checkpoint.load(baseline, section.factory)[1]["extra"]
    if source.get("checkpoint") == weights and source["digest"] != digest(Path(weights)):
        raise UserError(
            f"train.{name}.checkpoint: {weights} has changed since {baseline.parent} was made of it; "
            f"dvc repro -s -f train@{name} reads it anew"
        )


def check_baseline(name: str, measured: Quality) -> None:
    """UserError unless a baseline's figures on the validation images are finite."""
    if not math.isfinite(measured.mean_psnr):
        raise UserError(
            f"train.{name}: the baseline gives infinite values or NaN for a validation image, "
            f"{measured.names[[math.isfinite(psnr) for psnr in measured.psnr].index(False)]}"
        )


def warn_of_baseline(setup: Setup, network: nn.Module, psnr: float, start: float, weights: str | None) -> None:
    """Warn of a baseline that is no better than its input, and say what may be wrong with weights from a file.

    psnr, start: the network's and its input's on the validation images, in dB. weights: the file, if there is one.
    """
    if psnr > start:
        return
    sentence = f"the baseline's PSNR of {psnr:.3f} dB is no better than its input's {start:.3f} dB"
    hint = measured_range(network, setup.validate, psnr, start) if weights else "it needs more steps, or another lr"
    warnings.warn(
        f"train.{setup.name}: {sentence}; {hint or f'{weights} was trained for something else'}", stacklevel=2
    )
