"""Which attribute of which module an operation takes its sizes from, or which tensor's shape, so that they can follow.

The network is traced with attributes whose numbers know where they come from: a subclass of int arrives at a split,
slice or view as it is. Their sums and differences know all of theirs; whatever else is computed (`width // 2`) is a
plain int again and has no attribute. Numbers that are read from a tensor's shape know the call that made the tensor.
Where a call is given such a number, it is noted beside the nodes that the call makes in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node, traceback
from torch.overrides import TorchFunctionMode

from pipeline.networks import duplicate
from pipeline.networks.sizes import sizes, write
from pipeline.pruning.labels import Size

Found = dict[Any, Size]  # which of an operation's sizes -> the attributes that it is the sum of


class Written(int):
    """A number that knows which attributes it is the sum of."""

    size: Size

    def __add__(self, other: int) -> int:
        if isinstance(other, Written):
            return _written((*self.size, *other.size))
        return self if type(other) is int and other == 0 else int(self).__add__(other)

    __radd__ = __add__  # the sum of a list begins with 0

    def __neg__(self) -> int:
        return _written(tuple((place, -number) for place, number in self.size))

    def __sub__(self, other: int) -> int:
        return self + -other if isinstance(other, Written) else int(self).__sub__(other)


class Read(int):
    """A number of a tensor's shape that knows which call made the tensor, and which of its dimensions it is."""

    source: tuple[int, int]


def tagged(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose attributes of whole numbers know their places."""
    copy = duplicate(network).eval()
    for name, numbers in sizes(copy).items():
        write(copy, name, [_written((((name, place), number),)) for place, number in enumerate(numbers)])
    return copy


@contextmanager
def noting() -> Iterator[None]:
    """Within it, a trace notes the attributes that sizes come from; `noted` reads them."""
    with _Calls(), traceback.preserve_node_meta():
        yield


def noted(node: Node) -> Found:
    """The sizes of a traced operation that attributes give.

    Of a split: the part's number, or None where one number is the size of all parts. Of a slice: (dimension, "start")
    and (dimension, "end"); of narrow: "start" and "length". Of view, reshape and unflatten: the number in the shape.
    """
    return node.meta.get("custom", {}).get("sizes", {})


def call_of(node: Node) -> int:
    """The number of the call that made a traced operation, counted from 1; 0 where it isn't known."""
    return node.meta.get("custom", {}).get("call", 0)


def read_sizes(node: Node) -> dict[int, tuple[int, int]]:
    """Of a traced view, reshape or unflatten: number in its shape -> (call, dimension) whose size was read for it."""
    return node.meta.get("custom", {}).get("read", {})


class _Calls(TorchFunctionMode):
    """Writes beside the nodes that a call makes its number, and where its sizes are from."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.made: dict[int, tuple[Tensor, int]] = {}  # id -> a tensor, which is kept so that it has it, and its call

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is Tensor.shape or func is Tensor.size:
            return self._known(args[0], func(*args, **kwargs), kwargs.get("dim", args[-1]))
        self.count += 1
        number = self.count
        find = FINDERS.get(getattr(func, "__name__", ""))
        given = find(args, kwargs) if find else {}
        found = {key: size.size for key, size in given.items() if isinstance(size, Written)}
        read = {key: size.source for key, size in given.items() if isinstance(size, Read)}
        with traceback.annotate({"call": number, "sizes": found, "read": read}):
            result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.made[id(result)] = result, number
        return result

    def _known(self, tensor: Tensor, sizes: Any, dim: Any) -> Any:
        """The sizes of a tensor as numbers that know its call; dim: of the one that was asked for."""
        _, call = self.made.get(id(tensor), (tensor, 0))
        if not call:
            return sizes
        if isinstance(sizes, tuple):
            return torch.Size([_read(size, call, place) for place, size in enumerate(sizes)])
        return _read(sizes, call, dim % tensor.dim())


def _argument(args: Sequence[Any], kwargs: dict[str, Any], position: int, *names: str) -> Any:
    return args[position] if len(args) > position else next((kwargs[name] for name in names if name in kwargs), None)


def _of_split(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[Any, Any]:
    asked = _argument(args, kwargs, 1, "split_size_or_sections", "split_size", "split_sizes")
    return dict(enumerate(asked)) if isinstance(asked, tuple | list) else {None: asked}


def _of_index(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[Any, Any]:
    """Of x[...] and x[...] = y: a slice stands for a dimension, None makes one, a number takes one away."""
    tensor, index = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
    if not all(entry is None or entry is ... or isinstance(entry, int | slice) for entry in index):
        return {}  # a tensor as an index
    found: dict[Any, Any] = {}
    dim, taken = 0, sum(entry is not None and entry is not ... for entry in index)
    for entry in index:
        if isinstance(entry, slice):
            found |= {(dim, "start"): entry.start, (dim, "end"): entry.stop}
        if entry is ...:
            dim += tensor.dim() - taken
        elif entry is None or isinstance(entry, slice):
            dim += 1
    return found


def _of_narrow(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[Any, Any]:
    return {name: _argument(args, kwargs, position, name) for position, name in ((2, "start"), (3, "length"))}


def _of_shape(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[Any, Any]:
    shape = _argument(args, kwargs, 1, "shape", "size")
    return dict(enumerate(shape if isinstance(shape, tuple | list) else args[1:]))


def _of_unflatten(args: Sequence[Any], kwargs: dict[str, Any]) -> dict[Any, Any]:
    shape = _argument(args, kwargs, 2, "sizes")
    return dict(enumerate(shape)) if isinstance(shape, tuple | list) else {}


FINDERS: dict[str, Callable[[Sequence[Any], dict[str, Any]], dict[Any, Any]]] = {
    **dict.fromkeys(["split", "split_with_sizes"], _of_split),
    **dict.fromkeys(["__getitem__", "__setitem__"], _of_index),
    **dict.fromkeys(["view", "reshape"], _of_shape),
    "unflatten": _of_unflatten,
    "narrow": _of_narrow,
}


def _read(size: int, call: int, dim: int) -> int:
    if type(size) is not int:  # symbolic
        return size
    made = Read(size)
    made.source = call, dim
    return made


def _written(size: Size) -> Written:
    made = Written(sum(number for _, number in size))
    made.size = size
    return made
