"""What of a network's MACs half of its channels could save: the layers of its graph, and which of them must stay."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from pipeline import cost
from pipeline.networks import duplicate
from pipeline.pruning import labels, tracing


class Linears(TorchFunctionMode):
    """Counts the multiply-adds of linear layers, however they are called."""

    macs = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is F.linear:
            self.macs += made.numel() * (*args, *(kwargs or {}).values())[0].shape[-1]
        return made


def macs(network: nn.Module, side: int) -> int:
    """Of 2-D convolutions and linear layers, for one image of that side."""
    with torch.no_grad(), cost.quiet(), Linears() as linears:
        duplicate(network)(torch.rand(1, 3, side, side))
    return cost.measure(network, (side, side), 3).mac + linears.macs


def called(network: nn.Module, example: torch.Tensor) -> list[str]:
    """Names of the convolutions and linear layers in the order in which they run."""
    names: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_hook(lambda *_, name=name: names.append(name))
    with torch.no_grad():
        network(example.clone())
    return names


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a traced network."""

    name: str
    macs: float
    inputs: int
    outputs: int
    grouped: bool
    reads_image: bool  # nothing learned lies between the image and it
    makes_image: bool  # nothing learned lies between it and the output
    fixed: bool  # training doesn't change its kernel


def graph_layers(network: nn.Module, example: torch.Tensor) -> list[Layer]:
    """The layers of the graph that torch.export gives, which follows what each reads and makes."""
    with torch.no_grad(), cost.quiet():
        program = tracing.exported(network, example)
    signature, nodes = program.graph_signature, list(program.graph.nodes)
    owned = dict(signature.inputs_to_parameters) | dict(signature.inputs_to_buffers)
    still = tracing.untrained(network) | set(signature.inputs_to_buffers.values())
    found: dict[Any, tuple[Any, Any, str, bool]] = {}  # node -> input, kernel, name, fixed
    for node in nodes:
        operation = labels.operation(node) if node.op == "call_function" else ""
        if re.fullmatch(r"conv_transpose2d|conv2d|linear", operation):
            args = labels.arguments(node)
            name = owned.get(args["weight"].name, "")
            found[node] = args["input"], args["weight"], name.rpartition(".")[0], name in still
    learned = {node for node, (_, _, _, fixed) in found.items() if not fixed}
    behind, before = set(), set()  # what has learned layers above it; what reaches the output without one
    for node in nodes:
        if any(source in behind or source in learned for source in node.all_input_nodes):
            behind.add(node)
    for node in reversed(nodes):
        if any(user.op == "output" or (user in before and user not in learned) for user in node.users):
            before.add(node)
    result = []
    for node, (read, kernel, name, fixed) in found.items():
        shape, places = labels.shape_of(kernel), labels.shape_of(node)
        wide = "transpose" in labels.operation(node)
        groups = labels.arguments(node).get("groups") or 1
        positions = labels.shape_of(read) if wide else places
        count = math.prod(shape) * positions[0] * math.prod(positions[1:-1] if len(shape) == 2 else positions[2:])
        channel = -1 if len(shape) == 2 else 1
        sides = labels.shape_of(read)[channel], places[channel]
        early = read not in behind and read not in learned
        result.append(Layer(name, count, *sides, groups > 1, early, node in before, fixed))
    return result


def possible(network: nn.Module, example: torch.Tensor) -> float:
    """% of the MACs that would be left if every layer lost half of what it reads and makes, but for the image."""

    def share(count: int, whole: bool) -> float:
        return 1.0 if whole else 1 - count // 2 / count

    left = total = 0.0
    for layer in graph_layers(network, example):
        total += layer.macs
        reads = share(layer.inputs, layer.reads_image or layer.fixed)
        makes = share(layer.outputs, layer.makes_image or layer.fixed)
        left += layer.macs * (max(reads, makes) if layer.grouped else reads * makes)
    return 100 * left / total if total else math.nan


def makers(network: nn.Module, example: torch.Tensor) -> list[str]:
    return [layer.name for layer in graph_layers(network, example) if layer.makes_image or layer.fixed]
