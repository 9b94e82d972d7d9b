"""Weights that were trained elsewhere, put into a network by their published key names.

A file is read as plain tensors alone (`torch.load(weights_only=True)`): nothing in it runs. It holds a state_dict, bare
or under one of HOLDERS, or is a checkpoint of this project with nothing removed. Which keys it may have:

- those of the network itself, for every network;
- for EDSR, those of EDSR-PyTorch (github.com/sanghyun-son/EDSR-PyTorch, src/model/edsr.py and common.py), which works
  on 0..rgb_range and shifts the mean by two fixed 1x1 convolutions, and those of BasicSR
  (github.com/XPixelGroup/BasicSR, basicsr/archs/edsr_arch.py), which multiplies its input by img_range, 255 by
  default, and divides its output by it;
- for SID, those of SeeInDark (github.com/lavi135246/pytorch-Learning-to-See-in-the-Dark, model.py), and those of LSID
  (github.com/cydonia999/Learning_to_See_in_the_Dark_PyTorch, models/lsid.py), which shuffles pixels as TensorFlow does.
  SeeInDark's pooling drops the last row and column of an odd size; outputs are equal where the sides divide by 16.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, joined
from pipeline.files import load_tensors
from pipeline.networks import checkpoint, rebuilt, unfolded
from pipeline.networks.edsr import RGB_MEAN
from pipeline.networks.folded import fold, folded

HOLDERS = (  # averaged weights come first
    "params_ema", "model_ema", "ema_state_dict", "params", "state_dict", "model_state_dict", "model", "net", "net_g",
    "netG", "generator", "G",
)  # fmt: skip
OTHER_RANGE = 1.0  # dB that a network gains at least in the range of pixel values that it was made for
NESTED = 3  # holders within one another; a file may hold itself
# what wrappers put before every name: averages first, then DataParallel, torch.compile, Lightning and GAN trainers
PREFIXES = ("ema_model.", "model_ema.", "module.", "_orig_mod.", "model.", "generator.", "net_g.", "netG.", "net.")

_MEAN_SHIFTS = ("sub_mean.weight", "sub_mean.bias", "add_mean.weight", "add_mean.bias")
_PUBLISHED_RANGE = 255  # rgb_range of EDSR-PyTorch, img_range of BasicSR: the default of both
_LARGE, _LARGE_SCALE = (32, 256), 0.1  # blocks and channels of the paper's large EDSR, its residual scale in both
_SHOWN = 3  # keys of each kind that a sentence names


@dataclass(frozen=True)
class _Layout:
    """A published way to name a network's tensors."""

    name: str
    keys: dict[str, str]  # our name of a tensor -> the file's
    aside: frozenset[str] = frozenset()  # what else the file may hold, without a tensor of ours for it


def load_weights(path: Path, network: nn.Module, factory: str, args: dict[str, Any] | None = None) -> str:
    """Put a file's weights into `network`, in place and in its precision; returns how the file was read, for the log.

    factory: the network's name in pipeline.networks; only its own keys are known for a package.module:function.
    args: the factory's. With them, a file may also hold the network as the factory gives it, before its computed
    kernels are folded: published weights do.
    Weights for images in 0..255 are rescaled for 0..1, so that the outputs are the published ones over 255.

    Raises UserError for a file that is missing, damaged, holds more than plain tensors or a pruned network, and for one
    whose keys or shapes don't fit: the sentence lists them, with what was expected.
    """
    expected = {key: value for key, value in network.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    state = _read(path, factory, expected)
    computed = None if args is None else _computed(path, factory, args, expected.keys(), state.keys())
    if computed is not None:
        how = load_weights(path, computed, factory)
        fold(factory, computed)
        network.load_state_dict(computed.state_dict())
        return f"{how}, folded"
    layouts = _layouts(factory, expected, state)
    layout = max(layouts, key=lambda known: len(state.keys() & set(known.keys.values())))  # the first of equals
    known = ", ".join(f"{one.name} (… {next(reversed(one.keys.values()), 'none')})" for one in layouts)
    if not state.keys() & set(layout.keys.values()):
        raise UserError(
            f"{path} has no key of the network '{factory}', only {_some(state)}; known are those of {known}"
        )
    if errors := _errors(layout, expected, state):
        raise UserError(
            f"{path} doesn't fit the network '{factory}', read by the keys of {layout.name}: {'; '.join(errors)}"
            f"{_resembles(factory, layout, state)}; known are the keys of {known}"
        )
    ours = {key: state[name].detach().to(expected[key].dtype, copy=True) for key, name in layout.keys.items()}
    if spoilt := [layout.keys[key] for key, value in ours.items() if not value.isfinite().all()]:
        raise UserError(f"{path}: infinite values or NaN in {_some(spoilt)}; all values must be finite")
    try:
        for key, name in layout.keys.items():
            checkpoint.check_values(name, state[name], expected[key])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    told = [f"keys of {layout.name}"]
    if layout.name in ("EDSR-PyTorch", "BasicSR"):
        ours["mean"] = expected["mean"]
        told += _to_unit_range(ours, _pixel_range(path, state))
    if layout.name == "LSID":
        told += _to_torch_shuffle(ours)
    try:
        network.load_state_dict(ours)
    except RuntimeError as error:  # a module of the user's may ask for more than tensors
        raise UserError(f"{path} doesn't load into the network '{factory}': {joined(error)}") from None
    return ", ".join(told)


def check_output(network: nn.Module, example: Tensor, path: str) -> None:
    """UserError when weights that were read from `path` make something of an image in 0..1 that isn't finite."""
    output = rebuilt.answer(network, torch.rand(example.shape, generator=torch.Generator().manual_seed(0)))
    if output is not None and not output.isfinite().all():
        raise UserError(f"{path}: with these weights the network's output must be finite, but it holds infinity or NaN")


def measured_range(network: nn.Module, measure: Callable[[nn.Module], float], own: float, least: float) -> str:
    """The range of pixel values in which a network reaches more than `least` where it doesn't in 0..1; or nothing.

    measure: the quality of a network whose inputs and outputs are in 0..1, in dB. own: what that is of this one.
    A poor network gains a little by any other range, as its biases count for less there; one made for it gains much.
    """
    for name, factor, offset in (("0..255", 255, 0), ("-1..1", 2, -1)):
        reached = measure(_InRange(network, factor, offset))
        if reached > max(least, own + OTHER_RANGE):
            return (
                f"with pixels in {name}, in and out, it reaches {reached:.3f} dB: it was made for them, and here a "
                "network must work with 0..1 (a factory whose forward converts them makes it so)"
            )
    return ""


class _InRange(nn.Module):
    """A network that works with pixels in offset .. factor + offset, for those in 0..1."""

    def __init__(self, network: nn.Module, factor: float, offset: float) -> None:
        super().__init__()
        self.network, self.factor, self.offset = network, factor, offset

    def forward(self, image: Tensor) -> Tensor:
        return (self.network(image * self.factor + self.offset) - self.offset) / self.factor


def _read(path: Path, factory: str, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's state_dict: names and dense tensors on the CPU."""
    content = load_tensors(path)
    if isinstance(content, dict) and {"format", "kept"} <= content.keys():
        whole, meta = checkpoint.load(path, factory)
        state = whole.state_dict()
        if meta["kept"] and any(key in state and state[key].shape != expected[key].shape for key in expected):
            raise UserError(f"{path} holds a pruned network, but a baseline must be whole")
        return state
    found = _held(path, content)
    try:
        return folded(unwrapped(found, expected), expected)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _computed(path: Path, factory: str, args: dict[str, Any], names: Set[str], found: Set[str]) -> nn.Module | None:
    """The network before its computed kernels are folded, where a file's names are rather of that one.

    names, found: the folded network's, and the file's as they were read for it.
    """
    if ":" not in factory or names == found:
        return None
    with torch.random.fork_rng(devices=[]):
        network = unfolded(factory, args)
    theirs = network.state_dict().keys()
    if theirs == names:
        return None
    state = unwrapped(_held(path, load_tensors(path)), theirs)
    return network if len(state.keys() & theirs) > len(names & found) else None


def read_state(path: Path) -> dict[str, Tensor]:
    """A file's state_dict as it is, for who doesn't know the network yet: names and dense tensors on the CPU."""
    return unwrapped(_held(path, load_tensors(path)), ())


def _held(path: Path, content: Any) -> dict[str, Tensor]:
    for _ in range(NESTED):
        if isinstance(content, dict):
            content = next((content[key] for key in HOLDERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state_dict, neither bare nor under {', '.join(HOLDERS)}")
    for key, value in content.items():
        if not isinstance(key, str):
            raise UserError(f"{path}: {key!r}, a key of its state_dict, must be a text: the name of a tensor")
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {key!r} of its state_dict must be a tensor, not {type(value).__name__}")
        odd = value.is_nested or (value.is_floating_point() and value.dtype not in checkpoint.FLOATS)
        apart = value.layout != torch.strided or value.is_quantized or value.device.type != "cpu"
        if odd or apart or value.is_complex():
            nested = "nested, " if value.is_nested else ""
            kind = f"{nested}{value.dtype}, {value.layout}, on {value.device}".replace("torch.", "")
            raise UserError(
                f"{path}: '{key}' must be a dense tensor of real numbers of 16 to 64 bits on the CPU, not {kind}"
            )
    return content


def unwrapped(state: dict[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """A state_dict without what wrappers put before the names; what belongs to the wrapper alone is left out.

    That is a counter of averaged steps, a loss's own network, a discriminator. expected: the network's own names; a
    file that has one of them isn't wrapped, and a prefix that they have is no wrapper's.
    """
    expected = set(expected)
    while not state.keys() & expected:
        found = [one for one in PREFIXES if any(key.startswith(one) for key in state)]
        wrapper = next((one for one in found if not any(key.startswith(one) for key in expected)), None)
        if wrapper is None:
            break
        state = {key.removeprefix(wrapper): value for key, value in state.items() if key.startswith(wrapper)}
    return state


def _layouts(factory: str, expected: dict[str, Tensor], state: dict[str, Tensor]) -> list[_Layout]:
    """What is known for this network, its own keys first."""
    known = [_Layout("the network itself", {key: key for key in expected})]
    if factory == "edsr":
        weights = [key for key in expected if key != "mean"]
        blocks = sum(key.endswith("conv1.weight") for key in weights)
        theirs = _renamed(weights, (r"^head", "head.0"), (r"^(body\.\d+)\.conv1", r"\1.body.0"),
                          (r"^(body\.\d+)\.conv2", r"\1.body.2"), (r"^body_end", f"body.{blocks}"),
                          (r"^tail", "tail.1"), (r"^upsample", "tail.0"))  # fmt: skip
        known.append(_Layout("EDSR-PyTorch", theirs, frozenset(_MEAN_SHIFTS)))
        theirs = _renamed(weights, ("^head", "conv_first"), ("^body_end", "conv_after_body"), ("^tail", "conv_last"))
        known.append(_Layout("BasicSR", theirs))
    if factory == "sid":
        for name, up, last in (("SeeInDark", "upv", "conv10_1"), ("LSID", "up", "conv10")):
            levels = [(rf"^encoder\.{level}\.conv", f"conv{level + 1}_") for level in range(5)]
            levels += [(rf"^decoder\.{level}\.conv", f"conv{level + 6}_") for level in range(4)]
            levels += [(rf"^upsample\.{level}\.", f"{up}{level + 6}.") for level in range(4)]
            biases = (f"{up}{level}.bias" for level in range(6, 10))  # one of zeros may be dropped
            idle = frozenset(key for key in biases if key in state and not state[key].any())
            known.append(_Layout(name, _renamed(list(expected), *levels, ("^tail", last)), idle))
    return known


def _renamed(keys: list[str], *rules: tuple[str, str]) -> dict[str, str]:
    """Each key and what the first rule that matches makes of it."""
    names = {}
    for key in keys:
        pattern, new = next((rule for rule in rules if re.match(rule[0], key)), ("^", ""))
        names[key] = re.sub(pattern, new, key)
    return names


def _errors(layout: _Layout, expected: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """What is missing, unknown and of another shape, in words and by the file's names."""
    expected_shapes = {name: tuple(expected[key].shape) for key, name in layout.keys.items()}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    missing = [f"{name} {shape}" for name, shape in expected_shapes.items() if name not in shapes]
    unknown = [f"{name} {shape}" for name, shape in shapes.items() if name not in expected_shapes.keys() | layout.aside]
    other = [
        f"{name} is {shapes[name]} where {shape} is expected"
        for name, shape in expected_shapes.items()
        if name in shapes and shapes[name] != shape
    ]
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", other))
    return [f"{kind}: {_some(names)}" for kind, names in kinds if names]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _resembles(factory: str, layout: _Layout, state: dict[str, Tensor]) -> str:
    """The `args` that would build what the file seems to hold; nothing when it can't be told."""

    def shape(key: str) -> tuple[int, ...]:
        value = state.get(layout.keys[key])
        return tuple(value.shape) if value is not None and value.dim() == 4 else (0, 0, 0, 0)

    if factory == "sid":
        base = shape("encoder.0.conv1.weight")[0]
        biased = any(re.fullmatch(r"(upsample\.|upv?)\d\.bias", key) and state[key].any() for key in state)
        return f"; its args seem to be {{base: {base}{', upsample_bias: true' if biased else ''}}}" if base else ""
    if factory != "edsr":
        return ""
    first = layout.keys["body.0.conv1.weight"].split(".", 2)[2]
    blocks = sum(re.fullmatch(rf"body\.\d+\.{re.escape(first)}", key) is not None for key in state)
    channels, (wide, narrow, *_) = shape("head.weight")[0], shape("upsample.0.weight")
    scale = math.isqrt(wide // narrow) if narrow else 0
    if layout.keys["upsample.0.weight"].replace("0.weight", "2.weight") in state:  # two steps, each doubles
        scale *= 2
    return f"; its args seem to be {{scale: {scale}, blocks: {blocks}, channels: {channels}}}"


def _pixel_range(path: Path, state: dict[str, Tensor]) -> int:
    """The largest pixel value that the published network works with.

    EDSR-PyTorch's mean shifts tell, its rgb_range times the mean; without them, and in BasicSR, it is the default.
    """
    if not any(key in state for key in _MEAN_SHIFTS):
        return _PUBLISHED_RANGE
    mean, identity = torch.tensor(RGB_MEAN), torch.eye(3).view(3, 3, 1, 1)
    shifts = [state[key].float() if key in state else torch.zeros(0) for key in _MEAN_SHIFTS]
    if [tuple(shift.shape) for shift in shifts] == [(3, 3, 1, 1), (3,)] * 2:
        reach = round((shifts[3].sum() / mean.sum()).nan_to_num(0, 0, 0).item())
        published = (identity, -reach * mean, identity, reach * mean)
        # half precision rounds by up to 0.4%
        if reach >= 1 and all(torch.allclose(a, b, rtol=0.01) for a, b in zip(shifts, published, strict=True)):
            return reach
    raise UserError(
        f"{path}: {', '.join(_MEAN_SHIFTS)} must take the mean {RGB_MEAN} times rgb_range away and add it again, "
        "as EDSR-PyTorch's do; no other shift can be taken over"
    )


def _to_unit_range(ours: dict[str, Tensor], reach: int) -> list[str]:
    """Make weights for images in 0..reach those for images in 0..1, in place; what was done, in words.

    Without its biases the network is homogeneous: f(reach·x) = reach·f(x), since ReLU is. So with every bias divided
    by `reach`, weights untouched, it gives the published output over `reach`, and every tensor within it as well.
    """
    told = []
    for key in ours:
        if key.endswith(".bias"):
            ours[key] /= reach
    if reach > 1:
        told.append(f"biases divided by {reach} for images in 0..1")
    blocks = {key.split(".")[1] for key in ours if key.startswith("body.")}
    if (len(blocks), ours["head.weight"].shape[0]) == _LARGE:
        # no key tells the residual scale; without it the published large network would give noise
        for key in ours:
            if re.match(r"body\.\d+\.conv2\.", key):
                ours[key] *= _LARGE_SCALE
        told.append(f"residual scale {_LARGE_SCALE} as published for 32 blocks of 256 channels")
    return told


def _to_torch_shuffle(ours: dict[str, Tensor]) -> list[str]:
    """Reorder the 12 channels before the pixel shuffle, in place; what was done, in words.

    TensorFlow's depth_to_space, which LSID repeats, takes channel 3·place + colour, torch's 4·colour + place.
    """
    order = [3 * place + colour for colour in range(3) for place in range(4)]
    for key in ("tail.weight", "tail.bias"):
        ours[key] = ours[key][order]
    return ["last layer's channels reordered for torch's pixel shuffle"]
