"""What each ATen operation does with channels: the table of handlers, and those of operations that compute.

Convention. A handler takes (labels, node, arguments by the names in the operation's schema) and returns the node's
value: an array of labels as `labels.py` describes it, or a list of them where the operation returns several
tensors. `HANDLERS` at the end is the table; overloads and the underscore of in-place operations are ignored. An
operation outside the table freezes every label it reads and everything it makes (`labels.unknown`). Handlers of
operations that only move elements are in `moves.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from pipeline.pruning.labels import Labels, Value, describe, layer_of, operation, role_of, shape_of, unknown
from pipeline.pruning.moves import (
    concatenates,
    deals,
    divides,
    expands,
    flips,
    folds,
    pads,
    permutes,
    picks,
    repeats,
    reshapes,
    rolls,
    selects,
    shuffles,
    splits,
    stacks,
    tiles,
    unfolds,
    unshuffles,
)
from pipeline.pruning.norms import mixes, takes

Handler = Callable[[Labels, Node, dict[str, Any]], Value]


def ignores(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """An assertion: makes nothing."""
    return trace.new(1)


def passes(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Each channel by itself: activations, pooling, resizing."""
    if len(node.all_input_nodes) > 1:
        return meets(trace, node, args)  # clamp and pow between tensors
    labels = trace.get(node.all_input_nodes[0])
    window = re.search(r"(?:pool|upsample_\w+|exact)([123])d", operation(node))
    if window and any(size > 1 for size in labels.shape[-int(window[1]) :]):
        return unknown(trace, node, args)  # it slides over channels
    return labels


def meets(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Element by element over two or more tensors: channels unite pairwise.

    A broadcast over H and W is the same channel.
    """
    rank = len(shape_of(node))
    shapes = {source: (1,) * (rank - len(shape_of(source))) + shape_of(source) for source in node.all_input_nodes}
    stored = [source for source in shapes if source in trace.owned or source in trace.constants]
    labels = {source: trace.get(source) for source in shapes if source not in stored}
    pattern = np.broadcast_shapes(*(part.shape for part in labels.values())) if labels else shape_of(node)
    pattern = (1,) * (rank - len(pattern)) + pattern
    for source in stored:  # a parameter's dimension is a channel where the tensor it meets has channels
        channel = [size > 1 for size in pattern[rank - len(shape_of(source)) :]]
        labels[source] = trace.tensor(source, channel)
    labels = {s: part.reshape((1,) * (rank - part.ndim) + part.shape) for s, part in labels.items()}
    pattern = np.broadcast_shapes(*(part.shape for part in labels.values()))
    whole = [s for s in labels if not any(p > 1 and size == 1 for p, size in zip(pattern, shapes[s], strict=True))]
    if not whole:
        return unknown(trace, node, args)
    result = np.broadcast_to(labels[whole[0]], pattern)
    for source, part in labels.items():
        if source in whole:
            trace.unite(result, part)
        elif part.size == 1:
            trace.freeze(part)  # one channel for all of the other's, such as a spatial attention map: it can't go
        else:
            trace.freeze(part, f"the broadcast of several channels in {describe(node)}")
    return result


def convolution(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """New labels for the output; the kernel's input side keeps the labels it reads.

    Conv kernels are [out, in/groups, ...], transposed ones [in, out/groups, ...]. In a grouped convolution a whole conv
    group is one channel: its inputs and outputs unite, and only dimension 0 of the kernel is indexed.
    """
    source, kernel, groups = args["input"], args["weight"], args["groups"]
    transposed = "transpose" in operation(node)
    read, outputs = trace.along(source, 1), trace.new(shape_of(node)[1])
    if any(size > 1 for dim, size in enumerate(trace.get(source).shape) if dim != 1):
        trace.freeze(read, f"the convolution {describe(node)}, which slides over channels")
    role = role_of(trace, kernel, node, outputs)
    if kernel in trace.buffers and groups == 1:
        trace.freeze(outputs, f"the kernel of {describe(node)}, which training doesn't change")
    if kernel in trace.still:
        trace.carriers.append((layer_of(trace, kernel, node), read, outputs))
    if groups > 1:
        rows = read.reshape(groups, -1)
        trace.unite(rows, rows[:, :1])
        trace.unite(outputs.reshape(groups, -1), rows[:, :1])
        trace.attach(kernel, 0, read if transposed else outputs, role)
    else:
        trace.attach(kernel, int(transposed), outputs, role)
        trace.attach(kernel, 1 - int(transposed), read, "input")
    trace.attach(args.get("bias"), 0, outputs, "channel")
    return outputs.reshape([-1 if d == 1 else 1 for d in range(len(shape_of(node)))])


def linear(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Like a convolution, over the last dimension."""
    return dense(trace, node, args["input"], args["weight"], 0, args["bias"])


def dense(trace: Labels, node: Node, source: Node, kernel: Node, makes: int, bias: Node | None = None) -> np.ndarray:
    """A product of the last dimension and a kernel of two; makes: the kernel's dimension that makes the channels."""
    labels, rank = trace.get(source), len(shape_of(kernel))
    if labels.size != labels.shape[-1]:
        return unknown(trace, node, {})  # channels sit in another dimension and would be carried past the kernel
    outputs = trace.new(shape_of(node)[-1])
    if kernel in trace.buffers:
        trace.freeze(outputs, f"the kernel of {describe(node)}, which training doesn't change")
    if kernel in trace.still:
        trace.carriers.append((layer_of(trace, kernel, node), trace.along(source, -1), outputs))
    reads = 2 * rank - 3 - makes  # the other one of the last two
    trace.attach(kernel, makes, outputs, role_of(trace, kernel, node, outputs))
    trace.attach(kernel, reads, trace.along(source, -1), "input")
    trace.attach(bias, 0, outputs, "channel")
    return outputs.reshape([1] * (len(shape_of(node)) - 1) + [-1])


def per_channel(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Batch norm, instance norm and PReLU: their parameters and statistics belong to the channel."""
    labels = trace.along(args["input"] if "input" in args else args["self"], 1)
    for key in ("weight", "bias", "running_mean", "running_var"):
        stored = args.get(key)
        # A single PReLU slope, of one dimension or none, serves all channels and stays.
        if stored is not None and shape_of(stored) == (len(labels),):
            trace.attach(stored, 0, labels, "channel")
    return labels.reshape([-1 if d == 1 else 1 for d in range(len(shape_of(node)))])


def reduces(trace: Labels, node: Node, args: dict[str, Any]) -> Value:
    """mean, sum ...: over H and W each channel by itself; over channels they mix."""
    labels = trace.get(args["self"])
    dims = args.get("dim")
    dims = range(labels.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = tuple(d % labels.ndim for d in dims)
    labels = united(trace, labels, dims)
    if any(labels.shape[d] > 1 for d in dims):
        taken = takes(trace, node, labels, dims)
        if isinstance(taken, str):
            return unknown(trace, node, args, taken)
        labels = taken
    labels = labels if args.get("keepdim") else labels.squeeze(dims)
    return [labels, labels] if operation(node) == "var_mean" else labels


def united(trace: Labels, labels: np.ndarray, dims: Sequence[int]) -> np.ndarray:
    """Labels of which those that lie beside each other along dims are one, where another dimension tells channels.

    Branches stacked as [N, branches, C, H, W] are weighed or added up so: each keeps all its branches, or goes in all.
    Without another dimension it is the channels themselves that are mixed: the labels come back as they are.
    """
    first = labels[tuple(slice(1) if d in dims else slice(None) for d in range(labels.ndim))]
    if first.size == 1:
        return labels
    trace.unite(labels, first)
    return first


def softmax(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    labels = trace.get(args["self"])
    dim = args["dim"] % labels.ndim
    whole = united(trace, labels, [dim])
    return unknown(trace, node, args) if whole.shape[dim] > 1 else np.broadcast_to(whole, labels.shape)


def multiplies(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Products of matrices [..., I, K] and [..., K, J], as in attention; of [..., K] and a parameter [K, J]."""
    sources = [args["self"], args["other"] if "other" in args else args["mat2"]]
    if any(len(shape_of(source)) < 2 for source in sources):
        return unknown(trace, node, args)
    left, right = map(shape_of, sources)
    if sources[1] in trace.owned and math.prod(right[:-2]) == 1 and len(right) <= len(left):
        return dense(trace, node, sources[0], sources[1], len(right) - 1)  # a linear layer written out
    batch = "".join(chr(ord("a") + d) for d in range(len(shape_of(node)) - 2))
    terms = [f"{batch[len(batch) + 2 - len(shape_of(source)) :]}" for source in sources]
    return product(trace, node, sources, [f"{terms[0]}IK", f"{terms[1]}KJ"], f"{batch}IJ")


def einsum(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """A product of two tensors, its equation written in full."""
    inputs, _, made = args["equation"].replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or not "".join([*terms, made]).isalpha() or any(len(set(term)) < len(term) for term in terms):
        return unknown(trace, node, args)
    return product(trace, node, args["tensors"], terms, made)


def product(trace: Labels, node: Node, sources: Sequence[Node], terms: Sequence[str], made: str) -> np.ndarray:
    """A product of two tensors, summed over the letters that its result doesn't have.

    terms, made: a letter for each dimension, as in the equation of an einsum. A sum over channels mixes them, unless
    another dimension of both tensors tells heads: a head goes as a whole, with its queries, keys and values. Rows or
    columns that are channels keep their labels.
    """
    letters = made + "".join(dict.fromkeys(letter for letter in "".join(terms) if letter not in made))

    def spread(values: np.ndarray, term: str) -> np.ndarray:
        """Labels with a dimension for every letter."""
        places = sorted(range(len(term)), key=lambda place: letters.index(term[place]))
        return np.transpose(values, places).reshape([
            values.shape[term.index(letter)] if letter in term else 1 for letter in letters
        ])  # fmt: skip

    parts = [spread(trace.get(source), term) for source, term in zip(sources, terms, strict=True)]
    sizes = [dict(zip(term, shape_of(source), strict=True)) for source, term in zip(sources, terms, strict=True)]
    heads = [
        d
        for d, letter in enumerate(made)
        if any(part.shape[d] > 1 for part in parts) and all(size.get(letter, 1) > 1 for size in sizes)
    ]
    summed = range(len(made), len(letters))
    if heads:  # each element is of a row's and of a column's channel, and both are of its head
        parts = [united(trace, part, [d for d in range(len(letters)) if d not in heads]) for part in parts]
    left, right = (united(trace, part, summed) for part in parts)
    if any(part.shape[d] > 1 for part in (left, right) for d in summed):
        return unknown(trace, node, {})
    if not heads and min(left.size, right.size) > 1:
        return unknown(trace, node, {})
    if heads or max(left.size, right.size) == 1:
        trace.unite(left, right)
        channels = np.broadcast_to(left, np.broadcast_shapes(left.shape, right.shape))
    else:
        channels, other = (left, right) if left.size > 1 else (right, left)
        trace.freeze(other)  # a map over H and W, the same for all channels: it can't go
    return channels.reshape(channels.shape[: len(made)])


def attends(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """scaled_dot_product_attention: a product of queries and keys, a softmax, and a product with the values.

    Its scale is by the channels of a head, so heads go as a whole; without heads only the values' channels can go.
    """
    sources = [args["query"], args["key"], args["value"]]
    rank = len(shape_of(node))
    if any(len(shape_of(source)) != rank for source in sources) or args["enable_gqa"]:
        return unknown(trace, node, args)
    queries, keys, values = (trace.get(source) for source in sources)
    heads = [
        d
        for d in range(rank - 2)
        if max(part.shape[d] for part in (queries, keys, values)) > 1
        and min(shape_of(source)[d] for source in sources) > 1
    ]
    if args["attn_mask"] is not None:
        mask = (1,) * (rank - len(shape_of(args["attn_mask"]))) + shape_of(args["attn_mask"])
        if any(mask[d] > 1 for d in heads):
            return unknown(trace, node, args)
        trace.freeze(trace.get(args["attn_mask"]), f"the mask of {describe(node)}")
    if not heads:
        if any(size > 1 for size in values.shape[:-1]):
            return unknown(trace, node, args)
        for part in (queries, keys):
            trace.freeze(part, f"the attention {describe(node)}, which adds channels up")
        return values
    queries, keys, values = (
        united(trace, part, [d for d in range(rank) if d not in heads]) for part in (queries, keys, values)
    )
    trace.unite(queries, keys)
    trace.unite(queries, values)
    return np.broadcast_to(queries, np.broadcast_shapes(queries.shape, keys.shape, values.shape))


def retypes(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Of the other tensor only the type counts."""
    return trace.get(args["self"])


EACH_CHANNEL_BY_ITSELF = """
    relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh sigmoid log_sigmoid tanh
    softplus softsign clamp clamp_min clamp_max abs neg exp log sqrt rsqrt square reciprocal sin cos pow round
    floor sign dropout feature_dropout alpha_dropout max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d
    avg_pool3d adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest1d upsample_nearest2d upsample_bilinear2d
    upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa alias clone
    contiguous detach to _to_copy lift_fresh_copy zeros_like ones_like gt ge lt le eq ne
"""

HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(
        ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], convolution
    ),
    **dict.fromkeys(["batch_norm", "instance_norm", "prelu"], per_channel),
    **dict.fromkeys(["layer_norm", "group_norm", "rms_norm"], mixes),
    **dict.fromkeys(
        ["add", "sub", "rsub", "mul", "div", "maximum", "minimum", "lerp", "addcmul", "where", "copy", "expand_as"],
        meets,
    ),
    **dict.fromkeys(EACH_CHANNEL_BY_ITSELF.split(), passes),
    **dict.fromkeys(["view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view"], reshapes),
    **dict.fromkeys(["permute", "transpose"], permutes),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "std", "var", "var_mean", "linalg_vector_norm"], reduces),
    **dict.fromkeys(["slice", "narrow", "select"], selects),
    **dict.fromkeys(["split", "split_with_sizes"], splits),
    **dict.fromkeys(["softmax", "log_softmax"], softmax),
    **dict.fromkeys(["matmul", "bmm"], multiplies),
    "einsum": einsum,
    "scaled_dot_product_attention": attends,
    "linear": linear,
    "expand": expands,
    "repeat_interleave": repeats,
    **dict.fromkeys(["repeat", "tile"], tiles),
    **dict.fromkeys(["index", "index_select"], picks),
    "channel_shuffle": deals,
    "im2col": unfolds,
    "col2im": folds,
    "cat": concatenates,
    "stack": stacks,
    "chunk": divides,
    "pad": pads,
    "flip": flips,
    "roll": rolls,
    "type_as": retypes,
    "pixel_shuffle": shuffles,
    "pixel_unshuffle": unshuffles,
    "_assert_tensor_metadata": ignores,
}
