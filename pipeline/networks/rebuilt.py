"""Whether a network that is built anew, and given the same state_dict, is the same network.

A checkpoint holds a state_dict and how to build the rest. What is drawn at construction and lies beside the
state_dict (an attribute, a list, a buffer with persistent=False) would be another one in the network that is loaded.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, first_line, joined
from pipeline.networks import build, duplicate, outputs

_SHOWN = 3  # names in a sentence
_TRACED = 64  # output values that a file holds
_OWN = vars(nn.Module()).keys()  # what every module has


def check(name: str, args: dict[str, Any], network: nn.Module, example: Tensor) -> None:
    """UserError, naming what differs, unless building the network a second time gives the same one.

    network: as networks.build(name, args) gave it. example: an input [1, C, H, W]; its values don't matter.

    All that is compared are numbers beside the state_dict, and outputs: a lone whole number that differs, as one that
    counts the layers ever built, counts only when the outputs differ too.
    """
    for key, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(f"network '{name}': '{key}' of its state_dict must be a tensor, not {type(value).__name__}")
    with aside(network):
        twin = build(name, args, outputs.chosen(network))
    try:
        twin.load_state_dict(network.state_dict())
    except RuntimeError as error:
        raise UserError(f"network '{name}' that is built twice isn't the same: {joined(error)}") from None
    names, difference = compare(network, twin, example)
    if difference:
        raise UserError(
            f"network '{name}' that is built twice computes another output, by {difference}; {_named(names)}"
        )
    if drawn := [key for key, lone in names.items() if not lone]:
        raise UserError(f"network '{name}' that is built twice isn't the same; {_named(drawn)}")


def same(network: nn.Module, loaded: nn.Module, example: Tensor) -> None:
    """UserError, naming what differs, unless a loaded network computes what the one that was saved does.

    What a training leaves beside the state_dict does no harm as long as the output doesn't depend on it.
    """
    names, difference = compare(network, loaded, example)
    if difference:
        raise UserError(f"the network that it would load as computes another output, by {difference}; {_named(names)}")


def compare(network: nn.Module, twin: nn.Module, example: Tensor) -> tuple[dict[str, bool], str]:
    """Names of numbers beside the state_dicts that differ (True: a lone whole number), and how far outputs differ.

    Outputs are those of one input of random values in 0..1, in eval mode, under the same random state; they count as
    equal within rounding. A network that differs from itself in this isn't compared by its outputs.
    """
    image = _image(network, tuple(example.shape))
    first, twin = _copied(network), twin.to(image.device)
    one, other = answer(first, image), answer(twin, image)
    difference = _apart(one, other)
    if difference and _apart(one, answer(_copied(network), image)):
        difference = ""
    mine, theirs = held(first), held(twin)
    names = {}
    for key in mine.keys() | theirs.keys():
        pair = mine.get(key), theirs.get(key)
        if not _equal(*pair):
            names[key] = all(isinstance(value, int) for value in pair) and not key.endswith("]")
    return dict(sorted(names.items())), difference


def trace(network: nn.Module, example: Tensor) -> dict[str, Any] | None:
    """A few output values, for `follows`; None of a network that gives none, or others by another random state."""
    image = _image(network, tuple(example.shape))
    output = answer(network, image)
    if output is None or not output.isfinite().all() or _apart(output, answer(network, image, seed=1)):
        return None
    values = output.detach().flatten()[:: max(1, output.numel() // _TRACED)][:_TRACED]
    return {"shape": list(example.shape), "values": values.float().cpu().tolist()}


def follows(network: nn.Module, traced: dict[str, Any]) -> bool:
    """Whether a network's outputs are those that `trace` saw, maybe on another machine.

    To 0.01% of the largest output in float32 on a CPU, which differ by less than 0.001% from processor to processor; to
    1% elsewhere, where multiplications are shorter. What is learned may be less than 1% of an output that begins with
    the enlarged input.
    """
    output = answer(network, _image(network, tuple(traced["shape"])))
    if output is None:  # whoever uses it sees why
        return True
    values, stored = output.detach().flatten().float(), torch.tensor(traced["values"])
    values = values[:: max(1, len(values) // _TRACED)][:_TRACED]
    numbers = [output, *(value for value in network.state_dict().values() if isinstance(value, Tensor))]
    short = any(value.device.type != "cpu" or value.dtype in (torch.float16, torch.bfloat16) for value in numbers)
    allowed = (0.01 if short else 0.0001) * stored.abs().max().item()
    return len(values) == len(stored) and torch.allclose(values, stored, rtol=0, atol=allowed)


def answer(network: nn.Module, image: Tensor, seed: int = 0) -> Tensor | None:
    """The output in eval mode, under the same random state each time; None if it fails or gives no dense tensor."""
    network.eval()
    with aside(network), torch.no_grad():
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy := sys.modules.get("numpy.random"):
            numpy.seed(seed)
        try:
            output = network(image)
        except Exception:  # a user's forward may raise anything; what trains it says so
            return None
    return output if isinstance(output, Tensor) and dense(output) else None


def dense(value: Tensor) -> bool:
    """Whether torch's functions take it: not a sparse or a quantized tensor, nor one without values."""
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta


@contextmanager
def aside(network: nn.Module) -> Iterator[None]:
    """The random states of torch, NumPy and Python come back afterwards."""
    devices = {tensor.device for tensor in network.state_dict().values() if isinstance(tensor, Tensor)}
    numpy = sys.modules.get("numpy.random")  # a program that loads a network may do without it
    states = random.getstate(), numpy and numpy.get_state()
    with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.set_state(states[1])


def held(network: nn.Module) -> dict[str, Any]:
    """Numbers and arrays that a network holds beside its state_dict, by name; in lists and objects of its own too."""
    import numpy as np

    lasting = network.state_dict(keep_vars=True).values()
    known = {id(value) for value in lasting} | {id(module) for module in network.modules()}
    beside: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, torch.Generator):
            value = value.get_state()
        if isinstance(value, Tensor):
            if id(value) not in known:
                beside[name] = repr(value) if value.is_meta else value.detach().cpu()  # meta: without values
            return
        if isinstance(value, np.ndarray | np.generic | int | float | complex):
            if getattr(value, "dtype", None) != np.dtype(object):
                beside[name] = value
            return
        if isinstance(value, np.random.Generator):
            beside[name] = repr(value.bit_generator.state)
            return
        if isinstance(value, random.Random):
            beside[name] = repr(value.getstate())
            return
        if id(value) in known:
            return
        known.add(id(value))
        kept.append(value)
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}[{key!r}]", item)
        elif isinstance(value, list | tuple | deque | set | frozenset):
            for number, item in enumerate(sorted(value, key=repr) if isinstance(value, set | frozenset) else value):
                walk(f"{name}[{number}]", item)
        elif isinstance(value, nn.Module):  # in a plain list: torch doesn't see its weights
            module(f"{name}.", value, value.named_parameters(recurse=False))
            for key, item in value.named_children():
                walk(f"{name}.{key}", item)
        elif type(value).__module__ not in ("builtins", "functools", "types") and hasattr(value, "__dict__"):
            for key, item in vars(value).items():
                walk(f"{name}.{key}", item)

    def module(prefix: str, value: nn.Module, more: Any = ()) -> None:
        for key, item in [*vars(value).items(), *value.named_buffers(recurse=False), *more]:
            if key not in _OWN:
                walk(f"{prefix}{key}", item)

    kept: list[Any] = []  # as long as they live, nothing else has their id
    for name, part in network.named_modules():
        module(f"{name}." if name else "", part)
    return beside


def _image(network: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Random values in 0..1, always the same, where and as precise as the network's tensors are."""
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    tensors = (value for value in network.state_dict().values() if isinstance(value, Tensor))
    place = next((tensor for tensor in tensors if tensor.is_floating_point()), image)
    return image.to(place.device, place.dtype)


def _copied(network: nn.Module) -> nn.Module:
    try:
        return duplicate(network)
    except (Exception, SystemExit) as error:  # a module's own __deepcopy__ may raise anything, as do locks and files
        raise UserError(f"{type(network).__name__} can't be copied (copy.deepcopy): {first_line(error)}") from None


def _apart(one: Tensor | None, other: Tensor | None) -> str:
    """How far two outputs are from each other beyond rounding; nothing when they aren't, or there is none of one."""
    if one is None:
        return ""
    if other is None or one.shape != other.shape or one.dtype != other.dtype:
        return "a failure" if other is None else f"a shape of {tuple(other.shape)} for {tuple(one.shape)}"
    largest = one.abs().nan_to_num().max().item() if one.numel() else 0.0
    allowed = torch.finfo(one.dtype).eps ** 0.5 * largest if one.is_floating_point() else 0
    if one.is_cuda:  # which kernel runs depends on the strides, and TF32 has 10 bits
        allowed = max(allowed, 0.01 * largest)
    if torch.allclose(other, one, rtol=0, atol=allowed, equal_nan=True):
        return ""
    return f"{(other - one).abs().max().item():.2g} where the largest value is {largest:.2g}"


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if one.is_floating_point() or one.is_complex():
            return torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)
        return torch.equal(one, other)
    if hasattr(one, "dtype"):  # NumPy's; bytes, so that NaN equals itself and objects do no harm
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    return one == other or (one != one and other != other)


def _named(names: Any) -> str:
    names = list(names)
    if not names:
        return "it depends on something that isn't in its state_dict"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    listed = ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more
    return (
        f"{listed} differ, and aren't in its state_dict: register_buffer keeps what is drawn at construction, "
        "nn.ModuleList the layers of a list"
    )
