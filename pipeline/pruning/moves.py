"""Handlers of operations that move elements and compute nothing: the labels move as the elements do.

The convention of a handler and the table are in `operations.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from pipeline.pruning.labels import Labels, Size, describe, operation, shape_of, unknown
from pipeline.pruning.sizes import noted, read_sizes


def concatenates(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Append along a channel dimension; elsewhere the channels of the parts unite."""
    sources, shape = args["tensors"], shape_of(node)
    dim = args["dim"] % len(shape)
    parts = [trace.get(source) for source in sources]
    if dim != 1 and all(part.shape[dim] == 1 for part in parts):
        for part in parts[1:]:
            trace.unite(parts[0], part)
        return np.broadcast_to(parts[0], np.broadcast_shapes(*(part.shape for part in parts)))
    common = np.broadcast_shapes(*((*part.shape[:dim], 1, *part.shape[dim + 1 :]) for part in parts))
    return np.concatenate(
        [
            np.broadcast_to(part, (*common[:dim], shape_of(source)[dim], *common[dim + 1 :]))
            for part, source in zip(parts, sources, strict=True)
        ],
        axis=dim,
    )


def stacks(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Along a new dimension: the parts' channels unite, so that a later sum over them is one channel."""
    parts = [trace.get(source) for source in args["tensors"]]
    for part in parts[1:]:
        trace.unite(parts[0], part)
    common = np.broadcast_to(parts[0], np.broadcast_shapes(*(part.shape for part in parts)))
    return np.expand_dims(common, args["dim"] % len(shape_of(node)))


def divides(trace: Labels, node: Node, args: dict[str, Any]) -> list[np.ndarray]:
    """chunk into equal parts: channel i of every part goes together, or the parts would differ in size."""
    labels = trace.get(args["self"])
    dim = args["dim"] % labels.ndim
    sizes = [value.shape[dim] for value in node.meta["val"]]
    if labels.shape[dim] == 1:
        return [labels] * len(sizes)
    parts = np.split(labels, np.cumsum(sizes)[:-1], axis=dim)
    for part in parts[1:]:
        if part.shape != parts[0].shape or len(parts) != args["chunks"]:
            trace.freeze(labels, f"the division into unequal parts by {describe(node)}")
            return parts
        trace.unite(parts[0], part)
    return parts


def splits(trace: Labels, node: Node, args: dict[str, Any]) -> list[np.ndarray]:
    labels = trace.get(args["self"])
    dim = args["dim"] % labels.ndim
    sizes = [value.shape[dim] for value in node.meta["val"]]
    if labels.shape[dim] == 1:
        return [labels] * len(sizes)
    trace.suspect(labels, node)
    ends, given = np.cumsum(sizes), noted(node)
    for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        counts(trace, node, given.get(number, given.get(None)), slice(end - size, end), labels)
    return np.split(labels, ends[:-1], axis=dim)


def counts(trace: Labels, node: Node, given: Size | None, place: slice, labels: np.ndarray) -> None:
    """Note the attributes that give the size of a part of the channels, unless these lie in several dimensions.

    Those of a sum count one after the other. Of a difference the first counts all channels, the second the other part.
    """
    if not given or labels.size != max(labels.shape):
        return
    whole = labels.reshape(-1)
    part, numbers = whole[place], [abs(number) for _, number in given]
    if len({number > 0 for _, number in given}) == 1 and part.size == sum(numbers):
        parts = np.split(part, np.cumsum(numbers)[:-1])
    elif len(given) == 2 and given[0][1] == whole.size and part.size == whole.size + given[1][1]:
        parts = [whole, np.delete(whole, place)]
    else:
        return
    if len(given) == 1 and given[0][1] > 0:
        trace.size(given[0][0], part, whole, node)
    else:
        trace.summed += [(name, counted, whole, node) for (name, _), counted in zip(given, parts, strict=True)]


def selects(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """slice, narrow and select."""
    labels = trace.get(args["self"])
    dim = args["dim"] % labels.ndim
    chosen: slice | int = 0
    if labels.shape[dim] > 1 and operation(node) == "select":
        chosen = args["index"]
    elif operation(node) == "narrow":
        chosen = slice(args["start"], args["start"] + args["length"])
    elif operation(node) == "slice":
        chosen = slice(args["start"], args["end"], args["step"])
    if labels.shape[dim] == 1 and operation(node) != "select":
        return labels  # one label for the whole dimension, such as H or W
    result = np.asarray(labels[(slice(None),) * dim + (chosen,)])
    if labels.shape[dim] > 1 and result.size < labels.size:
        trace.suspect(labels, node)
        for key, given in noted(node).items():  # a bound counts the channels before it, the length of narrow its own
            bound = sum(number for _, number in given)
            place = slice(bound) if bound >= 0 else slice(bound, None)  # below 0, those behind it
            if key == "length" and isinstance(chosen, slice):
                place = chosen
            if key in ((dim, "start"), (dim, "end"), "start", "length") and operation(node) != "select":
                counts(trace, node, given, place, labels)
    return result


def picks(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """index and index_select: places along H and W, the same for all channels.

    Places of channels are numbers that a removal doesn't change: those of a list or a buffer would be of others then.
    """
    labels = trace.get(args["self"])
    indices = args["indices"] if "indices" in args else [None] * (args["dim"] % labels.ndim) + [args["index"]]
    given = {d: index for d, index in enumerate(indices) if index is not None}
    if any(labels.shape[d] > 1 for d in given):
        return unknown(trace, node, args)
    for index in given.values():
        stored = index in trace.owned or index in trace.constants
        if index.meta["val"].dtype in (torch.bool, torch.uint8) or (not stored and trace.get(index).size > 1):
            return unknown(trace, node, args)
    # numpy puts the dimensions of an index where torch puts them
    ones = {d: np.zeros((1,) * len(shape_of(index)), int) for d, index in given.items()}
    return labels[tuple(ones.get(d, slice(None)) for d in range(len(indices)))]


def reshapes(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """view, flatten, squeeze ...: exact, by giving every element its label and seeing where they vary."""
    source = args["self"] if "self" in args else args["input"]
    labels = trace.get(source)
    if labels.size > 1 and operation(node) not in ("unsqueeze", "squeeze", "flatten"):
        trace.suspect(labels, node)
    if not math.prod(shape_of(node)):
        return unknown(trace, node, args)  # a tensor without elements shows no channels
    result = np.broadcast_to(labels, shape_of(source)).reshape(shape_of(node))
    for dim in range(result.ndim):
        first = result.take([0], axis=dim)
        if (result == first).all():
            result = first
    before = args["dim"] % labels.ndim if operation(node) == "unflatten" else 0
    for number, given in noted(node).items():
        place, size = given[0]
        if len(given) == 1 and size > 1 and result.shape[before + number] == size:
            rows = np.moveaxis(result, before + number, 0).reshape(size, -1)
            # a number in a method counts channels or is a number of parts, which stays
            if place[0] not in trace.written or (rows == rows[:, :1]).all():
                trace.shaped.append((place, rows, node))
    for number, (call, dim) in read_sizes(node).items():  # as many as another tensor has: they go with that one's
        theirs = trace.values[trace.made_by[call]] if call in trace.made_by else None
        if not isinstance(theirs, np.ndarray) or theirs.shape[dim : dim + 1] != (theirs.size,):
            continue
        held, other = ({trace.root(int(label)) for label in part.flat} for part in (result, theirs))
        if 1 < theirs.size == result.size == result.shape[before + number] and not held & other:
            trace.unite(theirs.reshape(-1), result.reshape(-1))
    return result


def permutes(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    labels = trace.get(args["self"])
    if operation(node) == "transpose":
        made = np.swapaxes(labels, args["dim0"], args["dim1"])
    else:
        made = np.transpose(labels, args["dims"])
    before, after = (part.reshape([size for size in part.shape if size > 1]) for part in (labels, made))
    if before.ndim == 2 and np.array_equal(after, before.T):
        trace.dealt.append(before)
    return made


def expands(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    labels = trace.get(args["self"])
    if labels.size == 1:
        return unknown(trace, node, args)  # can't tell a map spread over channels from one spread over H and W
    trace.suspect(labels, node)
    return labels.reshape((1,) * (len(shape_of(node)) - labels.ndim) + labels.shape)


def rolls(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Along H and W each channel by itself; without dims, or along channels, they change places."""
    labels = trace.get(args["self"])
    dims = [d % labels.ndim for d in args["dims"] or range(labels.ndim)]
    return unknown(trace, node, args) if any(labels.shape[d] > 1 for d in dims) else labels


def repeats(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """repeat_interleave: each channel many times, beside each other."""
    labels = trace.get(args["self"])
    if not isinstance(args["repeats"], int) or args["dim"] is None or labels.size == 1:
        return unknown(trace, node, args)
    dim = args["dim"] % labels.ndim
    return labels.repeat(args["repeats"], dim) if labels.shape[dim] > 1 else labels


def tiles(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """repeat and tile: all channels many times, one after the other; of a map, one label covers its copies."""
    labels = trace.get(args["self"])
    if labels.size == 1:
        return unknown(trace, node, args)  # as in expands
    rank = len(shape_of(node))
    times = args["repeats"] if "repeats" in args else args["dims"]
    times = [1] * (rank - len(times)) + list(times)  # tile may leave the first dimensions out
    labels = labels.reshape((1,) * (rank - labels.ndim) + labels.shape)
    return np.tile(labels, [n if size > 1 else 1 for n, size in zip(times, labels.shape, strict=True)])


def unfolds(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Patches as columns, [N, C·k·k, L]: each channel's k·k pixels are consecutive rows."""
    if len(shape_of(node)) != 3:
        return unknown(trace, node, args)
    return trace.along(args["self"], 1).repeat(math.prod(args["kernel_size"])).reshape(1, -1, 1)


def folds(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Columns back to an image: a channel's k·k rows go together."""
    if len(shape_of(node)) != 4:
        return unknown(trace, node, args)
    rows = trace.along(args["self"], 1).reshape(-1, math.prod(args["kernel_size"]))
    trace.unite(rows, rows[:, :1])
    return rows[:, 0].reshape(1, -1, 1, 1)


def pads(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    labels = trace.get(args["self"])
    padded = [labels.ndim - 1 - i // 2 for i, size in enumerate(args["pad"]) if size]  # pairs, the last dimension first
    return unknown(trace, node, args) if any(labels.shape[d] > 1 for d in padded) else labels


def flips(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    return np.flip(trace.get(args["self"]), args["dims"])


def shuffles(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """PixelShuffle(r): r*r consecutive input channels make one output channel and go together."""
    if len(shape_of(node)) != 4:
        return unknown(trace, node, args)
    rows = trace.along(args["self"], 1).reshape(-1, args["upscale_factor"] ** 2)
    trace.unite(rows, rows[:, :1])
    return rows[:, 0].reshape(1, -1, 1, 1)


def deals(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """channel_shuffle: a channel of each of so many parts in turn. Those at one place of all parts go together."""
    parts = trace.along(args["self"], 1).reshape(args["groups"], -1)
    trace.unite(parts, parts[:1])
    return parts.T.reshape([-1 if d == 1 else 1 for d in range(len(shape_of(node)))])


def unshuffles(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    if len(shape_of(node)) != 4:
        return unknown(trace, node, args)
    labels = trace.along(args["self"], 1)
    return np.repeat(labels, args["downscale_factor"] ** 2).reshape(1, -1, 1, 1)
