"""Which attribute of which module a split takes the sizes of its parts from, so that they can follow a removal.

The network runs once more, with attributes whose numbers know where they come from: a subclass of int arrives at
`torch.split` as it is, while whatever is computed from it (`width // 2`) is a plain int again and has no attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from pipeline.cost import quiet
from pipeline.networks import duplicate, rebuilt
from pipeline.networks.sizes import sizes, write
from pipeline.pruning.labels import Place, arguments, operation

SPLITS = ("split", "split_with_sizes")


class Written(int):
    """A number of an attribute that knows its place."""

    place: Place


class Splits(TorchFunctionMode):
    """Notes the sizes that splits are given, in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(func, "__name__", "") in SPLITS:
            self.given.append([*args, *(kwargs or {}).values()][1])
        return func(*args, **(kwargs or {}))


def places(network: nn.Module, example: torch.Tensor, nodes: Sequence[Node]) -> dict[Node, list[Place | None]]:
    """Node of a traced split -> where the size of each of its parts is written; None for one that no attribute gives.

    nodes: of the trace of this network, in the order in which they run. The network is left as it is. Empty where the
    splits that run aren't those of the trace.
    """
    splits = [node for node in nodes if node.op == "call_function" and operation(node) in SPLITS]
    if not splits or not sizes(network):
        return {}
    try:
        tagged = duplicate(network).eval()
        for name, numbers in sizes(tagged).items():
            write(tagged, name, [_written(number, (name, place)) for place, number in enumerate(numbers)])
        with torch.no_grad(), quiet(), rebuilt.aside(tagged), Splits() as seen:
            tagged(example.clone())
    except (Exception, SystemExit):  # any code can run in a forward; without its places, sizes stay as they are
        return {}
    if len(seen.given) != len(splits):
        return {}
    found = {}
    for node, given in zip(splits, seen.given, strict=True):
        parts = [value.shape[arguments(node)["dim"]] for value in node.meta["val"]]
        asked = list(given) if isinstance(given, tuple | list) else [given] * len(parts)
        if len(asked) != len(parts):
            return {}
        found[node] = [
            size.place if isinstance(size, Written) and size == part else None
            for size, part in zip(asked, parts, strict=True)
        ]
    return found


def _written(number: int, place: Place) -> Written:
    made = Written(number)
    made.place = place
    return made
