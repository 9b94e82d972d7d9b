"""What a trial of a removal runs: channels that go, a network with drawn weights, its images, what comes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from pipeline.errors import first_line
from pipeline.networks import duplicate
from pipeline.networks.checkpoint import tensors
from pipeline.pruning.removal import Coupling, Group

Removals = dict[Group, Sequence[int]]
FAILURES = (Exception, SystemExit)  # a forward may raise anything, and may even exit
CORNER = 8  # pixels along a side of a quick trial's image
RUNS = 32  # in training, where chance may choose the way


def chosen(removed: Removals) -> tuple[Coupling, dict[str, Sequence[int]]]:
    """A removal in the form that `masked` and `remove` take."""
    return Coupling(tuple(removed), ()), {group.name: gone for group, gone in removed.items()}


def spread(group: Group, share: float) -> list[int]:
    """That share of a group's channels, but never all of them, in an order of chance that is always the same."""
    order = random.Random(group.channels).sample(range(group.channels), group.channels)
    return sorted(order[: min(max(1, round(share * group.channels)), group.channels - 1)])


def rehearse(
    own: nn.Module, image: torch.Tensor, rng: torch.Generator
) -> tuple[nn.Module, torch.Tensor, torch.Tensor, bool] | None:
    """The network to try removals on, the image in its type, its output, and whether each group must be judged alone.

    New weights in float64, or else what the forward can take: float32, the network's own weights. Wholly finite outputs
    that aren't flat come first; None if no output has a finite value.
    """
    partial = None
    for drawn in (True, False):
        for dtype in dict.fromkeys((torch.float64, image.dtype)):
            try:
                trial = cast(duplicate(own), dtype).requires_grad_(False)  # a copy of a module's own may ask for them
            except FAILURES:  # a module's own way of changing its type
                continue
            full = scramble(trial, image.to(dtype), rng) if drawn else result(trial, image.to(dtype))
            if full is None or not full.isfinite().any():
                continue
            found = trial, image.to(dtype), full, not drawn or full.dtype != torch.float64
            if full.isfinite().all() and full.min() < full.max():
                return found
            partial = partial or found
    return partial


def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network with its real tensors in this type, float64 or float32; complex ones stay complex."""
    if all(tensor.dtype == dtype for tensor in tensors(network).values() if tensor.is_floating_point()):
        return network
    return network.double() if dtype == torch.float64 else network.float()


def precision(network: nn.Module) -> torch.dtype:
    """The type of the network's real parameters, float32 without any."""
    return next((tensor.dtype for tensor in network.parameters() if tensor.is_floating_point()), torch.float32)


def scramble(trial: nn.Module, image: torch.Tensor, rng: torch.Generator) -> torch.Tensor | None:
    """Draw new weights; scale kernels one by one so that signals keep their size through depth (LSUV, Mishkin 2016).

    A scale that training starts from zero would hide a wrong result, and so would a bias beside a signal that fades. A
    kernel that is used several times is scaled for its first use. Returns the output for the image; None if it fails.
    """
    for tensor in trial.parameters():
        if tensor.is_floating_point():
            fan = tensor[0].numel() if tensor.dim() > 1 and len(tensor) > 1 else 1
            drawn = torch.randn(tensor.shape, generator=rng) / fan**0.5
            tensor.copy_(drawn if fan > 1 else torch.rand(tensor.shape, generator=rng) + 0.5)
    scaled: set[int] = set()
    reused = False

    def rescale(layer: Any, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal reused
        kernel, bias = layer.weight, layer.bias
        reused = reused or id(kernel) in scaled
        if id(kernel) in scaled or not isinstance(kernel, nn.Parameter):  # a computed kernel can't be scaled
            return None
        scaled.add(id(kernel))
        shift = 0 if bias is None else bias.view(-1, *[1] * (kernel.dim() - 2))
        size = float((output - shift).square().mean().sqrt())
        if not 0 < size < float("inf"):
            return None
        kernel.div_(size)
        return (output - shift) / size + shift

    layers = [module for module in trial.modules() if isinstance(module, (_ConvNd, nn.Linear))]
    hooks = [layer.register_forward_hook(rescale) for layer in layers]
    made = result(trial, image)
    for hook in hooks:
        hook.remove()
    return result(trial, image) if made is None or reused else made


def tremor(trial: nn.Module, image: torch.Tensor, full: torch.Tensor) -> float:
    """What an error of rounding in the image becomes in the output: products of products enlarge it without bound."""
    return _moved(result(trial, image * (1 + 4 * torch.finfo(image.dtype).eps)), full)


def quake(trial: nn.Module, image: torch.Tensor, full: torch.Tensor) -> float:
    """What an error of rounding in all weights becomes in the output.

    One in the image may end within the network: at the choice of a code from a codebook, at a clamp.
    """
    shaken = duplicate(trial)
    with torch.no_grad():
        for tensor in shaken.parameters():
            if tensor.is_floating_point():
                tensor.mul_(1 + 4 * torch.finfo(tensor.dtype).eps)
    return _moved(result(shaken, image), full)


def _moved(again: torch.Tensor | None, full: torch.Tensor) -> float:
    if again is None or again.shape != full.shape:
        return float("inf")
    return float((again - full).nan_to_num(0.0).abs().max())


def result(network: nn.Module, image: torch.Tensor) -> torch.Tensor | None:
    """The output for a copy of the image; None if the forward fails."""
    with torch.no_grad():
        try:
            return network(image.clone())
        except FAILURES:  # whatever a forward may raise in this type
            return None


def starved(network: nn.Module, image: torch.Tensor) -> bool:
    """Whether the forward fails at a norm that is left a single value, as a larger image wouldn't leave it."""
    try:
        with torch.no_grad():
            network(image.clone())
    except FAILURES as error:
        return "Expected more than 1 value per channel" in str(error)
    return False


def failure(network: nn.Module, way: str, images: torch.Tensor, seed: int) -> str:
    """How a network fails in training, or on another image; empty if it doesn't. The random state stays as it was."""
    state = random.getstate()
    with torch.no_grad(), torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            network.train(way == "in training")(images.clone())
        except FAILURES as error:  # whatever a forward may raise when its tensors are smaller
            return f"{way} when channels go ({first_line(error)})"
        finally:
            random.setstate(state)
    return ""


def loud(image: torch.Tensor) -> torch.Tensor:
    """The image with each column stronger than the one before, the last 65,536 times: white in 16 bits.

    Signals of unit size pass a clamp at 10 as if it weren't there.
    """
    return image * torch.logspace(0, 1, image.shape[-1], base=2.0**16).to(image)


def shrunk(own: nn.Module, picture: torch.Tensor) -> torch.Tensor:
    """A corner of the picture where the network takes it: quick to compute."""
    corner = picture[..., :CORNER, :CORNER]
    return picture if result(own, corner) is None else corner


def alter(network: nn.Module, lone: set[str]) -> bool:
    """Give buffers other values in place, such as a gate that is 0 until training opens it; whether there are any.

    Each element by itself, so that it makes no difference whether others went. Whole numbers may be places in a table:
    of them only those of the buffers named, which hold one, such as a count of steps.
    """
    buffers = list(network.named_buffers())
    for name, buffer in buffers:
        if buffer.is_floating_point():
            buffer.copy_(0.5 + buffer.abs().clamp(max=1))
        elif buffer.dtype == torch.bool:
            buffer.logical_not_()
        elif name in lone:
            buffer.add_(10_000)
    return bool(buffers)
