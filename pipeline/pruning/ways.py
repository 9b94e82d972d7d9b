"""The ways that a forward takes: which operations run at which sizes, with how many channels, and in training."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from itertools import pairwise
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
    """Notes the operations that run, each with the numbers it is given beside tensors, but for sizes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.elements = most, 0  # elements: of all that the operations make
        self.names: list[str] = []
        self.steps: list[tuple[str, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, counted = _described(func)
        if len(self.names) == self.most:
            raise RuntimeError("more operations than a trial waits for")
        numbers = [
            repr(value)
            for value, counts in zip(args, counted, strict=False)
            if counts and all(isinstance(n, int | float) for n in (value if isinstance(value, list) else [value]))
        ]
        self.names.append(name)
        self.steps.append((name, *(numbers if any(isinstance(value, torch.Tensor) for value in args) else ())))
        made = func(*args, **(kwargs or {}))
        self.elements += sum(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
        return made


@functools.cache
def _described(func: Any) -> tuple[str, tuple[bool, ...]]:
    """An operation's name, and for each argument whether it may be a number, but for sizes."""
    return str(func), tuple(not str(argument.real_type).startswith("SymInt") for argument in func._schema.arguments)


def detours(own: nn.Module, picture: torch.Tensor, usual: list[str]) -> list[torch.Tensor]:
    """Images of the sizes at which the forward runs two operations in a row that aren't so among the usual ones.

    Sizes to 1,024 or more are looked at without computing values; at those where something new runs an image is tried,
    if that takes at most about 10^10 multiply-adds and makes at most 5 · 10^7 elements.
    """
    held = (leaf for module in own.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, torch.Tensor))
    shadow = duplicate(own, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in held})
    channels, height, width = picture.shape[1:]
    known, weights = set(pairwise(usual)), sum(tensor.numel() for tensor in own.parameters())

    def novel(shape: Sequence[int]) -> tuple[set[tuple[str, str]], int]:
        seen = operations(shadow, shape)
        return (set(pairwise(seen.names)) - known, seen.elements) if seen else (set(), 0)

    far = max(4, 1024 // min(height, width))
    shapes = [(1, channels, 3 * height, 7 * width)]
    if novel((16, channels, 2 * far * height, far * width))[0]:
        doubled = [2**n for n in range(far.bit_length())]
        shapes += [(16, channels, height, width), *((1, channels, 2 * k * height, k * width) for k in doubled)]
    found = []
    rng = torch.Generator().manual_seed(1)
    for shape in shapes:
        new, elements = novel(shape)
        if new:
            known |= new
            if weights * shape[0] * math.prod(shape[2:]) <= 10**10 and elements <= 5 * 10**7:
                found.append(torch.rand(shape, generator=rng).to(picture))
    return found


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
        coupling, removed = chosen({group: range(count) for group, count in zip(groups, gone, strict=True)})
        kept = {
            name: {dim: list(range(whole[name][dim] - len(places))) for dim, places in dims.items()}
            for name, dims in gone_indices(coupling, removed).items()
        }
        checkpoint.resize(small, kept)
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
