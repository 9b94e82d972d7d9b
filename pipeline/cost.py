"""What a network costs: multiply-adds, weights and activations of its convolutions, counted without running them.

Convention, after Table 1 of "Architecture-Aware Network Pruning for Vision Quality Applications" (ICIP 2019), whose
printed figures pin it down:

- only 2-D convolutions and transposed convolutions count, for one image at a stated input size
- one MAC is one multiply-add; bias counts nowhere
- MAC of a convolution: N · C_out · C_in/groups · k_h · k_w · H_out · W_out; of a transposed one:
  N · C_in · C_out/groups · k_h · k_w · H_in · W_in. In both that is the kernel's elements times positions. N is the
  batch that the call gets: 1, or more where a forward lays windows, flips or colours of the one image into it.
- weights: kernel elements; activations: elements of a layer's input plus elements of its output
- BW = weights + activations, elements that travel to or from memory (4 bytes each at fp32)
- a layer that is called twice counts MACs and activations twice and its weights once

`python -m pipeline.cost --help` tells how to print them for a network.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.cli import Parser, command
from pipeline.errors import UserError, explained
from pipeline.networks import PAPER_ARGS, PAPER_SIZE, build, duplicate, input_channels

BYTES_PER_ELEMENT = 4  # fp32


@dataclass(frozen=True)
class LayerCost:
    """One convolution. `name` is its kernel's name in the network without the ending ".weight"."""

    name: str
    kind: str  # "conv" or "transposed"
    in_channels: int
    out_channels: int
    groups: int
    mac: int
    weights: int  # elements
    activations: int  # elements

    @property
    def bw(self) -> int:
        """Elements that travel: weights + activations."""
        return self.weights + self.activations

    @property
    def mac_per_weight(self) -> float:
        return self.mac / self.weights

    @property
    def kernel_channels(self) -> tuple[int, int]:
        """Lengths of the kernel's first two dimensions."""
        if self.kind == "conv":
            return self.out_channels, self.in_channels // self.groups
        return self.in_channels, self.out_channels // self.groups


@dataclass(frozen=True)
class Cost:
    """All convolutions of a network in the order of their first call, and their totals."""

    layers: tuple[LayerCost, ...]

    @property
    def mac(self) -> int:
        return sum(layer.mac for layer in self.layers)

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)

    @property
    def activations(self) -> int:
        return sum(layer.activations for layer in self.layers)

    @property
    def bw(self) -> int:
        return self.weights + self.activations


def measure(network: nn.Module, size: tuple[int, int], channels: int) -> Cost:
    """Count the cost of one image [1, channels, height, width], with size = (height, width) of the network's input.

    Convolutions called as functions are counted as well, under the name of the parameter that is their kernel. Raises
    UserError when the network can't run on such an input, or makes shapes hang on the values of tensors.
    """
    cost, _ = _run_without_values(network, (1, channels, *size), "cost of {} cannot be counted on an input of {}")
    return cost


def shape(network: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what the network makes of an input [batch, channels, height, width] of that size.

    Runs a copy of the network on torch's fake tensors: shapes without contents, so that no size is too large, and the
    network itself is neither run nor changed. Raises UserError when the network can't run on such an input, gives
    anything but one tensor, or makes shapes hang on the values of tensors.
    """
    _, output = _run_without_values(network, size, "{} doesn't run on an input of {}")
    if not isinstance(output, Tensor):
        raise UserError(f"{type(network).__name__} runs, but it gives {type(output).__name__} and not one tensor")
    return tuple(int(side) for side in output.shape)


def multiple(takes: Callable[[int, int], bool], most: int = 128) -> int | None:
    """What an input's height and width must be multiples of; None where that is more than `most`, or nothing is taken.

    takes: whether the network runs on an input of that height and width. Three odd multiples in a row tell: a number
    that divides k · m, (k + 2) · m and (k + 4) · m, with k odd, divides m.
    """
    for number in range(1, most + 1):
        first, second, third = odd_multiples(number)
        if takes(first, second) and takes(third, second):
            return number
    return None


def odd_multiples(number: int) -> tuple[int, int, int]:
    """Three odd multiples of a number in a row, above 16: sides at which rounding shows."""
    k = 16 // number + 1 | 1  # the smallest odd number with k · number > 16
    return k * number, (k + 2) * number, (k + 4) * number


def _run_without_values(network: nn.Module, size: tuple[int, ...], sentence: str) -> tuple[Cost, Any]:
    """What a run costs, and what it gives; the sentence of UserError has places for the network's name and the size."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # late: sympy, which comes along, takes its time
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    batch, channels, height, width = size
    described = f"{f'{batch} × ' if batch > 1 else ''}{channels} channels × {height} × {width}"
    with explained(sentence.format(type(network).__name__, described)):
        mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())  # a forward may have constants
        shadow = _shadow(network, mode).eval()
        dtype = next((p.dtype for p in shadow.parameters() if p.is_floating_point()), torch.float32)
        counter = _Counter(shadow)
        with quiet(), torch.inference_mode(False), torch.no_grad(), mode:
            image = torch.empty(size, dtype=dtype)
            with counter:
                output = shadow(image)
    return Cost(tuple(counter.layers.values())), output


def _shadow(network: nn.Module, mode: Any) -> nn.Module:
    """A copy of fake tensors. The values are not copied: every tensor is replaced while the copy is made."""
    tensors = [*network.parameters(), *network.buffers()]
    for module in network.modules():
        tensors += [value for value in tree_leaves(vars(module)) if isinstance(value, Tensor)]
    replaced: dict[int, Any] = {}
    for tensor in tensors:
        empty = mode.from_tensor(tensor.detach(), static_shapes=True)
        replaced[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return duplicate(network, replaced)


class _Counter(TorchDispatchMode):
    """Adds up the layers while it is active: every convolution, however it is called, ends in one ATen operation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.layers: dict[str, LayerCost] = {}
        # First names last, so that a tensor with two names goes by its first.
        named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
        self.names = {id(tensor): name.removesuffix(".weight") for name, tensor in reversed(named)}
        # Padding by reflection and the like runs as an operation of its own before the convolution, whose input must
        # be counted without it: remember what went into the module. Likewise its name, for kernels that are computed
        # from other parameters.
        self.module_name: str | None = None
        self.module_input = 0
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_pre_hook(lambda _, inputs, name=name: self._enter(name, inputs))
                module.register_forward_hook(lambda *_: self._leave())

    def _enter(self, name: str, inputs: tuple[Tensor, ...]) -> None:
        self.module_name, self.module_input = name, inputs[0].numel() if inputs else 0

    def _leave(self) -> None:
        self.module_name = None

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and args[1].dim() == 4:
            image, kernel, transposed, groups = args[0], args[1], args[6], args[8]
            self._add(image, kernel, result, transposed, groups)
        return result

    def _add(self, image: Tensor, kernel: Tensor, result: Tensor, transposed: bool, groups: int) -> None:
        name = self.names.get(id(kernel)) or self.module_name or f"convolution {len(self.layers) + 1}"
        inputs = image.numel()
        if self.module_name is not None and self.module_input:
            inputs, self.module_input = self.module_input, 0
        places = image.shape if transposed else result.shape
        positions = int(places[0] * math.prod(places[2:]))  # int: fails where a size hangs on values
        layer = LayerCost(
            name=name,
            kind="transposed" if transposed else "conv",
            in_channels=image.shape[1],
            out_channels=result.shape[1],
            groups=groups,
            mac=kernel.numel() * positions,
            weights=kernel.numel(),
            activations=int(inputs + result.numel()),
        )
        earlier = self.layers.get(name)
        if earlier is not None:
            layer = replace(earlier, mac=earlier.mac + layer.mac, activations=earlier.activations + layer.activations)
        self.layers[name] = layer


class Slot(Protocol):
    """Where a channel group sits in one tensor (pipeline.pruning.coupling)."""

    @property
    def tensor(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def index(self) -> tuple[tuple[int, ...], ...]: ...


class Group(Protocol):
    """Channels that can only be removed together (pipeline.pruning.coupling)."""

    @property
    def slots(self) -> tuple[Slot, ...]: ...


def channel_saving(cost: Cost, group: Group) -> tuple[float, float]:
    """MAC and weights (elements) saved by removing one channel of a coupled group from the network measured in cost.

    Counted over the convolutions that make the channel and those that read it. One that loses n_out of its C_out
    outputs and n_in of its C_in inputs keeps the share (1 − n_out/C_out)(1 − n_in/C_in) of both. A grouped or
    depthwise one loses whole groups, inputs and outputs together, so that its kernel shrinks along one dimension only
    and the share is taken off once. All channels of a group save the same.
    """
    lost: dict[str, tuple[set[int], set[int]]] = {}
    for slot in group.slots:
        if slot.dim in (0, 1):
            lost.setdefault(slot.tensor.removesuffix(".weight"), (set(), set()))[slot.dim].update(slot.index[0])
    mac = weights = 0.0
    for layer in cost.layers:
        first, second = lost.get(layer.name, ((), ()))
        size_first, size_second = layer.kernel_channels
        saved = 1 - (1 - len(first) / size_first) * (1 - len(second) / size_second)
        mac += layer.mac * saved
        weights += layer.weights * saved
    return mac, weights


def as_json(cost: Cost) -> dict[str, Any]:
    """{"total": {"mac", "weights", "activations", "bw"}, "layers": [{"name", ..., "bw"}]}, counts as plain ints."""
    total = {"mac": cost.mac, "weights": cost.weights, "activations": cost.activations, "bw": cost.bw}
    return {"total": total, "layers": [{**asdict(layer), "bw": layer.bw} for layer in cost.layers]}


def as_table(cost: Cost) -> str:
    """One line for each layer and one for the total, each column in a unit that suits its total."""
    columns = [
        ("MAC", cost.mac, [layer.mac for layer in cost.layers], ""),
        ("weights", cost.weights, [layer.weights for layer in cost.layers], ""),
        ("activations", cost.activations, [layer.activations for layer in cost.layers], ""),
        ("BW", cost.bw, [layer.bw for layer in cost.layers], ""),
        ("fp32", BYTES_PER_ELEMENT * cost.bw, [BYTES_PER_ELEMENT * layer.bw for layer in cost.layers], "B"),
    ]
    names = ["layer", *(layer.name for layer in cost.layers), "total"]
    width = max(map(len, names))
    lines = [f"{name:<{width}}" for name in names]
    for title, total, values, suffix in columns:
        letter, unit = _unit(total)
        heading = f"{title} [{letter}{suffix}]" if letter + suffix else title
        cells = [heading, *(_figure(value, unit) for value in [*values, total])]
        wide = max(map(len, cells))
        lines = [f"{line}  {cell:>{wide}}" for line, cell in zip(lines, cells, strict=True)]
    ratio = f"{cost.mac / cost.weights:,.0f}" if cost.weights else "-"
    ratios = ["MAC/weight", *(f"{layer.mac_per_weight:,.0f}" for layer in cost.layers), ratio]
    wide = max(map(len, ratios))
    lines = [f"{line}  {cell:>{wide}}" for line, cell in zip(lines, ratios, strict=True)]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _unit(total: int) -> tuple[str, int]:
    """The largest of G, M, K that leaves the total three digits before the point: the units of the paper's Table 1."""
    for letter, unit in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if total >= 100 * unit:
            return letter, unit
    return "", 1


def _figure(value: int, unit: int) -> str:
    return f"{value:,}" if unit == 1 else f"{value / unit:,.3f}"


@contextmanager
def quiet() -> Iterator[None]:
    """torch logs and prints a page about a forward that it can't trace; one sentence says it."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pipeline.cost",
        description="Count MACs (multiply-adds), weights, activations and BW = weights + activations (elements) of a "
        "network's convolutions for one image, and BW in bytes at fp32. Nothing is run: any size takes the same time.",
    )
    parser.add_argument("--network", metavar="NAME", help="edsr, sid, or a factory as package.module:function")
    parser.add_argument(
        "--size",
        metavar="HEIGHTxWIDTH",
        help="input of the network in pixels; for sid half the raw image's height and width (packed Bayer); "
        "default: the paper's, edsr 1020x1020, sid 1424x2128",
    )
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="count this pruned network instead")
    parser.add_argument("--json", action="store_true", help="print JSON with plain integers instead of a table")
    return parser


def _size(text: str | None, name: str) -> tuple[int, int]:
    if text is None:
        if name not in PAPER_SIZE:
            raise UserError(f"--size is missing: network '{name}' has no default input size, give HEIGHTxWIDTH")
        return PAPER_SIZE[name]
    match = re.fullmatch(r"([0-9]{1,9})[xX×]([0-9]{1,9})", text)
    height, width = (int(match[1]), int(match[2])) if match else (0, 0)
    if height < 1 or width < 1:
        raise UserError(f"--size '{text}' is not a size: give HEIGHTxWIDTH in whole pixels of at least 1, as 1020x1020")
    return height, width


def _run(arguments: argparse.Namespace) -> str:
    name: str | None = arguments.network
    if arguments.checkpoint is not None:
        from pipeline.networks import checkpoint

        network, metadata = checkpoint.load(arguments.checkpoint, name)
        name = str(metadata["name"])
    elif name is not None:
        network = build(name, dict(PAPER_ARGS.get(name, {})))
    else:
        raise UserError(
            "nothing to count: give --network NAME (edsr, sid or package.module:function) or --checkpoint FILE"
        )
    height, width = _size(arguments.size, name)
    cost = measure(network, (height, width), input_channels(name))
    if arguments.json:
        return json.dumps(as_json(cost), indent=1)
    text = f"{name}, input {input_channels(name)} × {height} × {width}\n\n{as_table(cost)}"
    if name == "sid" and arguments.checkpoint is None:
        # The printed figure misses 7·H·W elements of this definition, whatever the authors left out.
        fewer = 7 * height * width
        text += (
            f"\n\nThe paper's Table 1 counts 7·H·W activations fewer than this definition: "
            f"activations {(cost.activations - fewer) / 1e6:,.3f} M, BW {(cost.bw - fewer) / 1e6:,.3f} M."
        )
    return text


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after one sentence on stderr about what the user gave."""
    return command(lambda: _run(_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
