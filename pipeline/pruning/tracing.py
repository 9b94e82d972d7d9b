"""Follows the channels of a network through its traced graph, from ATen operation to ATen operation.

Convention. A handler takes (labels, node, arguments by the names in the operation's schema) and returns the node's
value: an array of labels as `labels.py` describes it, or a list of them where the operation returns several
tensors. `HANDLERS` at the end is the table; overloads and the underscore of in-place operations are ignored. An
operation outside the table freezes every label it reads and everything it makes.
"""

from __future__ import annotations

import contextlib
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from pipeline.cost import quiet
from pipeline.errors import UserError, raised
from pipeline.networks import duplicate, outputs
from pipeline.networks.sizes import sizes
from pipeline.pruning.labels import Labels, Place, Value, arguments, describe, layer_of, operation, role_of, shape_of
from pipeline.pruning.norms import calls, mixes, takes
from pipeline.pruning.sizes import noted, noting, tagged

Handler = Callable[[Labels, Node, dict[str, Any]], Value]


def follow(network: nn.Module, example: torch.Tensor, norms: bool = False) -> Labels:
    """Trace a copy of the network in evaluation mode and label its channels.

    `example` is an input [N, C, H, W]; only its shape, type and device count. norms: whether channels may go that a
    normalisation takes its statistics over. Raises UserError where the forward can't
    be traced, for instance because it branches on values, or gives something else than a tensor.
    """
    name = type(network).__name__
    try:
        with torch.no_grad(), quiet():
            program = exported(network, example)
    except (Exception, SystemExit) as error:  # any code can run in a forward, so any error can come out of it
        raise UserError(
            f"the network {name} can't be traced for pruning ({raised(error)}); its forward must take one tensor "
            f"and must not branch on the values of tensors"
        ) from error
    if not program.call_spec.out_spec.is_leaf():
        raise UserError(
            f"the network {name} gives several tensors or a container of them; pruning needs one tensor, which output "
            "says, as output: 0"
        )
    signature = program.graph_signature
    owned = dict(signature.inputs_to_parameters) | dict(signature.inputs_to_buffers)
    result, still = Labels(), untrained(network)
    result.norms, result.attributes = norms, sizes(network)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in owned:
            result.owned[node] = owned[node.name]
            if node.name in signature.inputs_to_buffers:
                result.buffers.add(node)
            if node.name in signature.inputs_to_buffers or owned[node.name] in still:
                result.still.add(node)
            if node.users:
                result.used.add(owned[node.name])
        elif node.op == "placeholder" and node.name in signature.inputs_to_lifted_tensor_constants:
            result.constants.add(node)
            result.still.add(node)
        elif node.op == "placeholder":
            shape = shape_of(node)
            result.values[node] = result.new(*(size if d == 1 else 1 for d, size in enumerate(shape)))
            result.freeze(result.values[node])
            result.image.append(result.values[node])
        elif node.op == "get_attr":  # the graph inside a higher-order operation, which no handler knows
            result.values[node] = result.new(1)
        elif node.op == "output":
            for end in node.all_input_nodes:
                result.freeze(result.get(end))
                result.image.append(result.get(end))
        elif node.op == "call_function":
            result.values[node] = step(result, node)
    result.shape()
    for (tensor, _), (labels, _) in result.sites.items():
        if tensor in result.direct:
            result.freeze(labels, f"{tensor}, which forward also computes with directly")
    if result.statistics:
        result.calls = calls(program, example, result.statistics)
    if outputs.chosen(network) is not None:
        spare(result, program.graph)
    return result


def spare(trace: Labels, graph: Graph) -> None:
    """Freeze the channels that only outputs need which aren't chosen: no trial and no gate sees what they are for."""
    needed: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed:
            needed |= {node, *node.all_input_nodes}

    def parts(node: Node) -> list[np.ndarray]:
        value = trace.values.get(node, [])
        return value if isinstance(value, list) else [value]

    reached = {trace.root(int(label)) for node in needed for part in parts(node) for label in part.flat}
    for node in [node for node in trace.values if node not in needed]:
        for part in parts(node):
            others = [label for label in part.flat if trace.root(int(label)) not in reached]
            trace.freeze(np.array(others, dtype=int), "an output that isn't the chosen one and needs them alone")


def exported(network: nn.Module, example: torch.Tensor) -> ExportedProgram:
    """The graph of a copy in evaluation mode.

    Where the forward takes numbers that know their attribute, its nodes have those `noted`. Where it writes into a
    tensor's `.data`, as SPAN's does with kernels that it computes, torch.export runs it without values and is left with
    such a tensor; its strict mode reads the code instead, and takes longer.
    """
    if sizes(network):
        with contextlib.suppress(Exception, SystemExit), noting():  # any code can run in a forward
            return torch.export.export(tagged(network), (example,))
    try:
        return torch.export.export(duplicate(network).eval(), (example,))
    except RuntimeError as error:
        if "fake tensor in the exported program" not in str(error):
            raise
        with contextlib.suppress(Exception):
            return torch.export.export(duplicate(network).eval(), (example,), strict=True)
        raise


def untrained(network: nn.Module) -> set[str]:
    """Names of the parameters that training isn't meant to change.

    A layer may say so by `requires_grad = False` on itself, as RCAN's MeanShift does: it has no effect, but is meant.
    """
    return {
        f"{path}.{name}".removeprefix(".")
        for path, module in network.named_modules(remove_duplicate=False)
        for name, tensor in module.named_parameters(recurse=False)
        if not tensor.requires_grad or vars(module).get("requires_grad") is False
    }


def step(trace: Labels, node: Node) -> Value:
    if node.target is operator.getitem:
        value = trace.values[node.args[0]]
        return value[node.args[1]] if isinstance(value, list) else value
    sources = node.all_input_nodes
    if sources and not any(map(shape_of, (node, *sources))):  # single numbers, without a dimension for channels
        return meets(trace, node, arguments(node))
    value = HANDLERS.get(operation(node), unknown)(trace, node, arguments(node))
    if isinstance(value, np.ndarray) and value.ndim <= len(shape_of(node)):
        sizes = shape_of(node)[len(shape_of(node)) - value.ndim :]
        if any(size not in (1, real) for size, real in zip(value.shape, sizes, strict=True)):
            return unknown(trace, node, arguments(node))  # it cuts, repeats or merges along the channels
    return value


def unknown(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Freeze what goes in and what comes out. One label covers all that comes out."""
    reason = f"the operation {describe(node)}, through which channels can't be followed"
    outputs = trace.new(1)
    for source in node.all_input_nodes:
        value = trace.values.get(source)
        for labels in value if isinstance(value, list) else [trace.get(source)]:
            trace.freeze(labels, reason)
            trace.carriers.append(("", labels, outputs))
    trace.freeze(outputs, reason)
    return outputs


def passes(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Each channel by itself: activations, pooling, resizing."""
    if len(node.all_input_nodes) > 1:
        return meets(trace, node, args)  # clamp and pow between tensors
    labels = trace.get(node.all_input_nodes[0])
    window = re.search(r"(?:pool|upsample_\w+|exact)([123])d", operation(node))
    if window and any(size > 1 for size in labels.shape[-int(window[1]) :]):
        return unknown(trace, node, args)  # it slides over channels
    return labels


def ignores(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """An assertion: makes nothing."""
    return trace.new(1)


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
    labels = trace.get(args["input"])
    if labels.size != labels.shape[-1]:
        return unknown(trace, node, args)  # channels sit in another dimension and would be carried past the kernel
    outputs = trace.new(shape_of(node)[-1])
    if args["weight"] in trace.buffers:
        trace.freeze(outputs, f"the kernel of {describe(node)}, which training doesn't change")
    if args["weight"] in trace.still:
        layer = layer_of(trace, args["weight"], node)
        trace.carriers.append((layer, trace.along(args["input"], -1), outputs))
    trace.attach(args["weight"], 0, outputs, role_of(trace, args["weight"], node, outputs))
    trace.attach(args["weight"], 1, trace.along(args["input"], -1), "input")
    trace.attach(args["bias"], 0, outputs, "channel")
    return outputs.reshape([1] * (len(shape_of(node)) - 1) + [-1])


def per_channel(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Batch norm, instance norm and PReLU: their parameters and statistics belong to the channel."""
    labels = trace.along(args.get("input", args.get("self")), 1)
    for key in ("weight", "bias", "running_mean", "running_var"):
        stored = args.get(key)
        # A single PReLU slope, of one dimension or none, serves all channels and stays.
        if stored is not None and shape_of(stored) == (len(labels),):
            trace.attach(stored, 0, labels, "channel")
    return labels.reshape([-1 if d == 1 else 1 for d in range(len(shape_of(node)))])


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
    parts = np.split(labels, np.cumsum(sizes)[:-1], axis=dim)
    given = noted(node)
    for number, part in enumerate(parts):
        counts(trace, node, given.get(number, given.get(None)), part, labels)
    return parts


def counts(trace: Labels, node: Node, given: tuple[Place, int] | None, part: np.ndarray, labels: np.ndarray) -> None:
    """Note an attribute that gives the size of a part of the channels, unless they lie in several dimensions."""
    if given and part.size == given[1] and labels.size == max(labels.shape):
        trace.size(given[0], part.reshape(-1), labels.reshape(-1), node)


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
            before = np.moveaxis(labels, dim, 0)[: given[1]]
            if key in ((dim, "start"), (dim, "end"), "start", "length") and operation(node) != "select":
                counts(trace, node, given, result if key == "length" else before, labels)
    return result


def reshapes(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """view, flatten, squeeze ...: exact, by giving every element its label and seeing where they vary."""
    source = args.get("self", args.get("input"))
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
    for number, (place, size) in noted(node).items():
        if size > 1 and result.shape[before + number] == size:
            trace.shaped.append((place, np.moveaxis(result, before + number, 0).reshape(size, -1), node))
    return result


def permutes(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    labels = trace.get(args["self"])
    if operation(node) == "transpose":
        return np.swapaxes(labels, args["dim0"], args["dim1"])
    return np.transpose(labels, args["dims"])


def expands(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    labels = trace.get(args["self"])
    if labels.size == 1:
        return unknown(trace, node, args)  # can't tell a map spread over channels from one spread over H and W
    trace.suspect(labels, node)
    return labels.reshape((1,) * (len(shape_of(node)) - labels.ndim) + labels.shape)


def reduces(trace: Labels, node: Node, args: dict[str, Any]) -> Value:
    """mean, sum ...: over H and W each channel by itself; over channels they mix."""
    labels = trace.get(args["self"])
    dims = args.get("dim")
    dims = range(labels.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = tuple(d % labels.ndim for d in dims)
    labels = united(trace, labels, dims)
    if any(labels.shape[d] > 1 for d in dims):
        taken = takes(trace, node, labels, dims)
        if taken is None:
            return unknown(trace, node, args)
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
    """repeat: all channels many times, one after the other; of a map, one label covers its copies."""
    labels = trace.get(args["self"])
    if labels.size == 1:
        return unknown(trace, node, args)  # as in expands
    labels = labels.reshape((1,) * (len(args["repeats"]) - labels.ndim) + labels.shape)
    return np.tile(labels, [n if size > 1 else 1 for n, size in zip(args["repeats"], labels.shape, strict=True)])


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


def multiplies(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Products of matrices [..., I, K] and [..., K, J], as in attention.

    A sum over K that are channels mixes them, unless another dimension tells heads: a head goes as a whole, with its
    queries, keys and values. Rows or columns that are channels keep their labels.
    """
    sources = [args["self"], args.get("other", args.get("mat2"))]
    rank = len(shape_of(node))
    if any(len(shape_of(source)) < 2 for source in sources):
        return unknown(trace, node, args)
    sizes = [(1,) * (rank - len(shape_of(source))) + shape_of(source) for source in sources]
    parts = [trace.get(source) for source in sources]
    parts = [part.reshape((1,) * (rank - part.ndim) + part.shape) for part in parts]
    heads = [d for d in range(rank - 2) if any(part.shape[d] > 1 for part in parts) and all(s[d] > 1 for s in sizes)]
    inside = [d for d in range(rank) if d not in heads]
    if heads:  # each element is of a row's and of a column's channel, and both are of its head
        parts = [united(trace, part, inside) for part in parts]
    left, right = united(trace, parts[0], [rank - 1]), united(trace, parts[1], [rank - 2])
    if left.shape[-1] > 1 or right.shape[-2] > 1 or (not heads and min(left.size, right.size) > 1):
        return unknown(trace, node, args)
    if heads or max(left.size, right.size) == 1:
        trace.unite(left, right)
        return np.broadcast_to(left, np.broadcast_shapes(left.shape, right.shape))
    channels, other = (left, right) if left.size > 1 else (right, left)
    trace.freeze(other)  # a map over H and W, the same for all channels: it can't go
    return channels


def retypes(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """Of the other tensor only the type counts."""
    return trace.get(args["self"])


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


def unshuffles(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    if len(shape_of(node)) != 4:
        return unknown(trace, node, args)
    labels = trace.along(args["self"], 1)
    return np.repeat(labels, args["downscale_factor"] ** 2).reshape(1, -1, 1, 1)


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
    "linear": linear,
    "expand": expands,
    "repeat_interleave": repeats,
    "repeat": tiles,
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
