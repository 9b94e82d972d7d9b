"""The ways that a forward takes: which operations run at which sizes, with how many channels, and in training."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.cost import quiet
from pipeline.networks import checkpoint, duplicate
from pipeline.pruning.labels import owner
from pipeline.pruning.rehearsal import FAILURES, RUNS, chosen, failure, precision, spread
from pipeline.pruning.removal import Group, gone_indices


def operations(network: nn.Module, shape: Sequence[int]) -> Operations | None:
    """What runs for an image of this shape; None if the forward fails, or runs very many operations."""
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    image = torch.zeros(tuple(shape), dtype=precision(network), device=device)
    try:
        # As a context, a device makes every call slower.
        placed = contextlib.nullcontext() if device.type == "cpu" else device
        with quiet(), torch.no_grad(), placed, Operations(20_000) as seen:
            network(image)
    except FAILURES:  # whatever a forward may raise, more so without values
        return None
    return seen


class Operations(TorchDispatchMode):
    """Notes the operations that run, each with the numbers it is given."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.elements = most, 0  # elements: of all that the operations make
        self.names: list[str] = []
        self.steps: list[tuple[str, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if len(self.names) == self.most:
            raise RuntimeError("more operations than a trial waits for")
        kwargs = kwargs or {}
        given = [value if isinstance(value, list) else [value] for value in (*args, *kwargs.values())]
        numbers = [repr(n) for value in given if all(isinstance(n, int | float) for n in value) for n in value]
        name = _named(func)
        self.names.append(name)
        self.steps.append((name, *numbers))
        made = func(*args, **kwargs)
        self.elements += sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
        return made


@functools.cache
def _named(func: Any) -> str:
    return str(func)


def detours(own: nn.Module, picture: torch.Tensor, groups: list[Group], usual: Operations) -> list[torch.Tensor]:
    """Images of the sizes at which the forward does something else than usual, or changes otherwise when channels go.

    Else are two operations in a row that aren't so among the usual ones. What changes when channels go is compared with
    the picture's size. Sizes to 1,024 or more are looked at without computing values; at those where something is new
    an image is tried, if that takes at most about 10^10 multiply-adds and makes at most 5 · 10^7 elements. A forward
    that needs values has an image tried at each size of at most 10^9 multiply-adds.
    """
    small = duplicate(own)
    shorten(small, checkpoint.shapes(own), groups, [len(spread(group, 1 / 3)) for group in groups])
    shadow, less = without_values(own), without_values(small)
    channels, height, width = picture.shape[1:]
    weights = sum(tensor.numel() for tensor in own.parameters())
    here = operations(shadow, picture.shape)
    known: set = {*pairwise(usual.names), changes(here, operations(less, picture.shape))}
    known |= set(pairwise(here.names) if here else ())  # without values other operations may run

    def novel(shape: Sequence[int], shrunk: bool = True) -> tuple[set, int]:
        """What is new at this size, and how many elements are made; a forward that fails there alone is new."""
        seen = operations(shadow, shape)
        if seen is None:
            return {None} if here else set(), 0
        changed = {changes(seen, operations(less, shape))} if shrunk else set()
        return {*pairwise(seen.names), *changed} - known, seen.elements

    far = max(4, 1024 // min(height, width))
    shapes = [(1, channels, 3 * height, 7 * width)]
    large = (channels, 2 * far * height, far * width)
    if here is None or novel((16, *large), shrunk=False)[0] or novel((1, *large))[0]:
        doubled = [2**n for n in range(far.bit_length())]
        shapes += [(16, channels, height, width), *((1, channels, 2 * k * height, k * width) for k in doubled)]
    found = []
    rng = torch.Generator().manual_seed(1)
    for shape in sorted(shapes, key=math.prod):
        (new, elements), work = novel(shape), weights * shape[0] * math.prod(shape[2:])
        if work <= 10**9 if here is None else new - {None} and work <= 10**10 and elements <= 5 * 10**7:
            known |= new
            found.append(torch.rand(shape, generator=rng).to(picture))
    return found


def without_values(network: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes alone."""
    held = (
        leaf for module in network.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, torch.Tensor)
    )
    return duplicate(network, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in held})


def changes(seen: Operations | None, cut: Operations | None) -> frozenset:
    """What the forward does differently when channels go: operations in a row, and numbers that others replace."""
    if seen is None or cut is None:
        return frozenset([cut is None])
    if seen.names != cut.names:  # numbers of one or two, as factors are, can be told from sizes
        return frozenset(pairwise(cut.names)) | {step for step in {*cut.steps} - {*seen.steps} if len(step) <= 3}
    return frozenset(
        (step[0], *(pair for pair in zip_longest(step, other) if pair[0] != pair[1]))
        for step, other in zip(seen.steps, cut.steps, strict=True) if step != other
    )  # fmt: skip


def shorten(small: nn.Module, whole: Mapping[str, Sequence[int]], groups: Sequence[Group], gone: Sequence[int]) -> None:
    """Leave so many channels fewer than the whole network has in each group, whichever: only what runs is looked at."""
    coupling, removed = chosen({group: range(count) for group, count in zip(groups, gone, strict=True)})
    kept = {
        name: {dim: list(range(whole[name][dim] - len(places))) for dim, places in dims.items()}
        for name, dims in gone_indices(coupling, removed).items()
    }
    checkpoint.resize(small, kept)


def counts(small: nn.Module, tiny: torch.Tensor, groups: list[Group], usual: list[tuple[str, ...]]) -> list[float]:
    """Shares of the groups' channels without which the forward runs other operations, or the same with other numbers.

    Of shares that lead to the same operations the first is given, and no more than eight. All counts of a small network
    are looked at, and fewer of one that runs many operations. The network is cut.
    """
    whole = checkpoint.shapes(small)
    tries = min(max(3, 300 // max(1, len(usual))), max(group.channels for group in groups) + 1)
    found: dict[tuple | None, float] = {}
    known = set()
    for share in (number / (tries - 1) for number in range(tries)):
        gone = tuple(len(spread(group, share)) for group in groups)
        if gone in known:
            continue
        known.add(gone)
        shorten(small, whole, groups, gone)
        seen = operations(small, tiny.shape)
        found.setdefault(tuple(seen.steps) if seen else None, share)
    found.pop(tuple(usual), None)
    return list(found.values())[:8]


def wakes(network: nn.Module, images: torch.Tensor, idle: Sequence[str]) -> bool:
    """Whether training uses a parameter of these layers in one of 32 runs, or fails in one; a PReLU may never run."""
    whole = duplicate(network)
    watched = [tensor for name, tensor in whole.named_parameters() if owner(name) in idle]
    if any(tensor.layout != torch.strided for tensor in watched):  # no memory to watch
        return True
    with Uses(watched) as uses:
        return any(failure(whole, "in training", images, seed) or uses.seen for seed in range(RUNS))


class Uses(TorchDispatchMode):
    """Notes whether an operation takes one of these tensors, or a view of one."""

    def __init__(self, watched: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.memory = {tensor.untyped_storage().data_ptr() for tensor in watched}
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        dense = (leaf for leaf in given if leaf.layout == torch.strided)
        self.seen = self.seen or any(leaf.untyped_storage().data_ptr() in self.memory for leaf in dense)
        return func(*args, **(kwargs or {}))
