"""Follows the channels of a network through its traced graph, from ATen operation to ATen operation.

What an operation does with channels is in `operations.py`; this file traces the network and walks the graph.
"""

from __future__ import annotations

import contextlib
import operator

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from pipeline.cost import quiet
from pipeline.errors import UserError, raised
from pipeline.networks import duplicate, outputs
from pipeline.networks.sizes import sizes, written
from pipeline.pruning.labels import Labels, Value, arguments, operation, shape_of, unknown
from pipeline.pruning.norms import calls
from pipeline.pruning.operations import HANDLERS, meets
from pipeline.pruning.sizes import call_of, noting, tagged


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
    result.norms, result.attributes, result.written = norms, sizes(network), written(network)
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
            image = result.new(*(size if d == 1 else 1 for d, size in enumerate(shape)))
            result.values[node] = image
            result.freeze(image)
            result.image.append(image)
        elif node.op == "get_attr":  # the graph inside a higher-order operation, which no handler knows
            result.values[node] = result.new(1)
        elif node.op == "output":
            for end in node.all_input_nodes:
                result.freeze(result.get(end))
                result.image.append(result.get(end))
        elif node.op == "call_function":
            result.values[node] = step(result, node)
            result.made_by[call_of(node)] = node
    result.shape()
    result.add_up()
    result.deal()
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

    Where the forward takes numbers that know where they are from, its nodes have those noted. Where it writes into a
    tensor's `.data`, as SPAN's does with kernels that it computes, torch.export runs it without values and is left with
    such a tensor; its strict mode reads the code instead, and takes longer.
    """
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
        source, number = node.args
        assert isinstance(source, Node)
        assert isinstance(number, int)
        value = trace.values[source]
        return value[number] if isinstance(value, list) else value
    sources = node.all_input_nodes
    if sources and not any(map(shape_of, (node, *sources))):  # single numbers, without a dimension for channels
        return meets(trace, node, arguments(node))
    value = HANDLERS.get(operation(node), unknown)(trace, node, arguments(node))
    if isinstance(value, np.ndarray) and value.ndim <= len(shape_of(node)):
        sizes = shape_of(node)[len(shape_of(node)) - value.ndim :]
        if any(size not in (1, real) for size, real in zip(value.shape, sizes, strict=True)):
            return unknown(trace, node, arguments(node))  # it cuts, repeats or merges along the channels
    return value
