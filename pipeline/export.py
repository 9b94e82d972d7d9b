"""A pruned network as ONNX, for programs without torch: `python -m pipeline.export FILE --output network.onnx`.

One input, `input` [batch, channels, height, width] in float32, and one output, `output`; batch, height and width are
free. The file is written only after onnxruntime, on the CPU, has computed from it what torch computes.
"""

from __future__ import annotations

import argparse
import importlib
import keyword
import logging
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import cost
from pipeline.cli import Parser, command, json_arguments
from pipeline.errors import UserError, explained, first_line, raised
from pipeline.files import destination, write_bytes
from pipeline.networks import checkpoint, duplicate, given, input_channels, unfolded

OPSET = 18  # what torch's exporter writes without converting it; onnxruntime reads it from 1.14 on
TOLERANCE = 1e-4  # largest absolute difference allowed; images are 0..1, an 8-bit level is 4e-3
LARGEST = 2 * 10**9  # bytes; a single ONNX file holds less than 2 GiB

Shape = tuple[int, int, int, int]  # batch, channels, height, width


@dataclass(frozen=True)
class Exported:
    """What is known of a written file."""

    bytes: int
    difference: float  # the largest absolute one between onnxruntime and torch
    shapes: tuple[Shape, ...]  # of the inputs that were compared
    multiple: int  # of which the input's height and width must be


def export(network: nn.Module, path: Path, channels: tuple[int, ...]) -> Exported:
    """Write a network [B, C, H, W] -> [B, C', H', W'] as one ONNX file in float32, and compare it with torch.

    channels: of the input; the first one that the network takes. What its height and width must be multiples of is
    found by running it. The file appears whole or not at all. Raises UserError when the network can't be exported,
    differs from torch by more than TOLERANCE, or doesn't fit in one file.
    """
    for package in ("onnxscript", "onnxruntime"):  # a program that only loads pruned networks does without them
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"{path} can't be made: {first_line(error)}; requirements.txt has {package}") from None
    network = duplicate(network).cpu().float().eval()
    held = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if held >= LARGEST:
        raise UserError(f"{path}: the network holds {held} bytes, but one ONNX file holds less than {LARGEST}")
    example, shapes, multiple = input_shapes(network, channels)
    content = to_onnx(network, example, path)
    difference = max(compare(content, network, shape, path) for shape in shapes)
    write_bytes(path, content)
    return Exported(len(content), difference, shapes, multiple)


def input_shapes(network: nn.Module, channels: tuple[int, ...]) -> tuple[Shape, tuple[Shape, Shape], int]:
    """An input to trace a network with, two others to compare it on, and the multiple its sides must be of.

    The compared ones are odd multiples, so that a network that rounds sizes is compared where it does. Raises UserError
    when the network runs on none.
    """
    reason = ""
    for count in channels:

        def takes(height: int, width: int, count: int = count) -> bool:
            nonlocal reason
            try:
                cost.shape(network, (1, count, height, width))
            except UserError as error:
                reason = reason or str(error)
                return False
            return True

        multiple = cost.multiple(takes)
        if multiple is not None:
            first, second, third = cost.odd_multiples(multiple)
            compared = (1, count, first, second), (3, count, third, second)
            for shape in compared:
                run(network, torch.zeros(shape))
            return (2, count, first + multiple, second + multiple), compared, multiple
    tried = " or ".join(map(str, channels))
    raise UserError(
        f"{type(network).__name__} can't be exported: it makes no image of an input with {tried} channels whose height "
        f"and width are multiples of a number up to 128 ({reason})"
    )


def run(network: nn.Module, image: Tensor) -> Tensor:
    """The network's output; UserError when its forward fails or gives anything but one tensor."""
    with torch.no_grad(), explained(f"{type(network).__name__} fails on an input {tuple(image.shape)}"):
        output = network(image.clone())  # a forward may change its input
    if not isinstance(output, Tensor):
        raise UserError(f"{type(network).__name__} gives {type(output).__name__} and not one tensor")
    return output


def to_onnx(network: nn.Module, example: Shape, path: Path) -> bytes:
    """The ONNX file's contents, weights included. UserError when an operation of the network has no place in ONNX."""
    if not all(map(_plain, checkpoint.tensors(network))):
        network = _Renamed(network)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # remarks on torchvision, which isn't needed
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                network,
                (torch.zeros(example),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
                verbose=False,
            )
            assert program is not None  # with dynamo=True there is one
            return program.model_proto.SerializeToString()
    except Exception as error:  # torch.onnx names its errors in modules that are private, and a forward raises any
        raise UserError(f"{path} can't be made: {raised(error.__cause__ or error)}") from error
    finally:
        logger.setLevel(level)


def _plain(name: str) -> bool:
    """Whether torch's exporter can write this name of a tensor into the code that it makes of a network."""
    return all(part.isdecimal() or (part.isidentifier() and not keyword.iskeyword(part)) for part in name.split("."))


class _Renamed(nn.Module):
    """A network whose tensors have other names: a layer called `class`, or one with a quote, can't be exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.hidden = (network,)  # in a tuple, so that its names aren't seen
        self.names = {name: f"tensor{number}" for number, name in enumerate(checkpoint.tensors(network))}
        for name, tensor in checkpoint.tensors(network).items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(self.names[name], tensor)
            else:
                self.register_buffer(self.names[name], tensor)

    def forward(self, image: Tensor) -> Any:
        tensors = {name: getattr(self, new) for name, new in self.names.items()}
        return torch.func.functional_call(self.hidden[0], tensors, (image,))


def compare(content: bytes, network: nn.Module, shape: Shape, path: Path) -> float:
    """The largest absolute difference between onnxruntime and torch on random values in 0..1.

    UserError when it is above TOLERANCE or no number, or when onnxruntime refuses the network.
    """
    import onnxruntime

    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised as well
    options.intra_op_num_threads = 1  # a small check; the cores may be busy with a training
    size = f"an input of {' × '.join(map(str, shape))}"
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        output = torch.from_numpy(session.run(None, {"input": image.numpy()})[0])
    except Exception as error:  # onnxruntime's errors have no common class
        raise UserError(f"{path} isn't written: onnxruntime fails on {size}: {first_line(error)}") from error
    expected = run(network, image)
    if output.shape != expected.shape:
        shapes = f"{tuple(output.shape)} where torch gives {tuple(expected.shape)}"
        raise UserError(f"{path} isn't written: onnxruntime gives {shapes} on {size}")
    difference = (output - expected).abs().max().item()
    if not difference <= TOLERANCE:  # also true for NaN
        raise UserError(
            f"{path} isn't written: it differs from torch by {difference:.1e} on {size}; {TOLERANCE:g} is allowed"
        )
    return difference


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m pipeline.export",
        description="Write a pruned network as one ONNX file with free batch, height and width, once onnxruntime has "
        "computed from it what torch computes.",
    )
    parser.add_argument("checkpoint", metavar="FILE", type=Path, help="results/finetune/NETWORK/METHOD/network.pt")
    parser.add_argument("--output", metavar="ONNX", type=Path, required=True, help="the file to write")
    parser.add_argument("--network", metavar="NAME", help="package.module:function, for a factory's network")
    parser.add_argument(
        "--args", metavar="JSON", type=json_arguments, help="its arguments, for a network that a program handed over"
    )
    return parser


def _run(arguments: argparse.Namespace) -> str:
    if not arguments.output.name:  # "." and "" are folders
        raise UserError(f"--output {arguments.output} is a folder; the name of a file to write is needed")
    destination(arguments.output, source=arguments.checkpoint)
    network, meta = checkpoint.load(arguments.checkpoint, _builder(arguments))
    name = str(meta["name"])
    # a factory's network may read RGB, packed Bayer or luma
    channels = (3, 4, 1) if ":" in name else (input_channels(name),)
    done = export(network, arguments.output, channels)
    sides = "any height and width" if done.multiple == 1 else f"height and width multiples of {done.multiple}"
    compared = " and ".join(" × ".join(map(str, shape)) for shape in done.shapes)
    return (
        f"{arguments.output}: {done.bytes:,} bytes, ONNX opset {OPSET}, input [batch, {done.shapes[0][1]}, height, "
        f"width], {sides}\nlargest difference from torch: {done.difference:.1e} (onnxruntime, inputs {compared})"
    )


def _builder(arguments: argparse.Namespace) -> str | nn.Module | None:
    """What tells `checkpoint.load` of the network: its name or, of one that no name built when it was saved, itself."""
    path, name = arguments.checkpoint, arguments.network
    if (stored := checkpoint.metadata(path)["name"]) != given.NAME:
        if arguments.args is not None:
            raise UserError(f"--args is for a network that a program handed over; {path} has those of '{stored}'")
        return name
    if name is None:
        raise UserError(
            f"{path} holds a network that a program handed over, so that nothing says how to build it: "
            "--network package.module:function, and --args, must build it as it was before pruning"
        )
    return unfolded(name, arguments.args or {})


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after one sentence on stderr about what the user gave."""
    return command(lambda: _run(_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
