"""What `Pruner` is given, as params.yaml would say it: the network, its task, its images, sides that it takes."""

from __future__ import annotations

import errno
import itertools
import math
import os
import reprlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import cost, networks
from pipeline.errors import UserError, explained, joined, raised
from pipeline.files import destination, digest
from pipeline.networks import duplicate, given
from pipeline.networks.folded import fold
from pipeline.networks.pretrained import load_weights
from pipeline.networks.recognised import recognise
from pipeline.schema import read_yaml
from pipeline.training import cache

SETTINGS = Path(__file__).parents[2] / "presets" / "small.yaml"
TASKS = ("super_resolution", "restoration", "low_light")


def check_kind(name: str, value: object, allowed: str, kind: Any) -> None:
    """UserError where an argument's value isn't of its kind."""
    if not isinstance(value, kind):
        raise UserError(f"{name} is {reprlib.repr(value)}; {allowed} is allowed")
    if isinstance(value, str | Path) and "\0" in str(value):
        raise UserError(f"{name} is {str(value)!r}; a null character isn't allowed")


def check_path(name: str, value: object) -> None:
    """UserError where an argument isn't a path that the file system could have."""
    check_kind(name, value, "a path", str | Path)
    try:
        os.stat(str(value))
    except UnicodeEncodeError:
        raise UserError(f"{name} is {reprlib.repr(str(value))}, which has a character that no path has") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{name} is {reprlib.repr(str(value))}: {error.strerror}") from None


def built(
    network: nn.Module | Path | str, factory: str | None, args: dict[str, Any] | None
) -> tuple[nn.Module, str, dict[str, Any]]:
    """The whole network in float32 on the CPU, and how it is built."""
    if args is not None and factory is None:
        raise UserError("args are those of a factory, which is missing: package.module:function")
    if isinstance(network, str | Path):
        check_path("network", network)
        if not Path(network).exists():
            raise UserError(f"{network} can't be read: there is no such file")
        if factory is None:
            return recognise(Path(network))
        net = networks.build(factory, args or {})
        load_weights(Path(network), net, factory, args or {})
        _ready(type(net).__name__, net)
        return net, factory, args or {}
    if not isinstance(network, nn.Module):
        kind = f"the class {network.__name__}" if isinstance(network, type) else type(network).__name__
        raise UserError(f"network must be a torch.nn.Module that is built, or a file of weights, not {kind}")
    whole = networks.unwrapped(network)
    name = type(whole).__name__
    networks.check_complete(name, whole)
    with explained(f"repr() of {name} fails"):  # torch's trace and its messages call it
        repr(whole)
    state = _state(name, whole)
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if wrong:
        raise UserError(f"'{wrong[0]}' of the network's state_dict must be a tensor")
    for key, value in state.items():
        try:
            finite = bool(value.isfinite().all())
        except RuntimeError:  # torch has no such function for sparse, quantized and 8-bit floats
            kind = f"{value.dtype}, {value.layout}".replace("torch.", "")
            raise UserError(
                f"the network's {key} is a tensor of {kind}; dense ones of 16 to 64 bits are needed"
            ) from None
        if not finite:
            raise UserError(f"the network's {key} must be finite, but holds infinite values or NaN")
    try:
        net = duplicate(whole)
    except (Exception, SystemExit) as error:  # a module's own __deepcopy__ may raise anything, as do locks and files
        raise UserError(f"{name} can't be copied (copy.deepcopy): {raised(error)}") from error
    copied = _state(name, net)
    if copied.keys() != state.keys() or not all(_equal(copied[key], value) for key, value in state.items()):
        raise UserError(f"a copy of {name} (copy.deepcopy) has other weights than the network")
    places = {value.data_ptr() for value in state.values() if value.numel()}
    if shared := [key for key, value in copied.items() if value.data_ptr() in places]:
        raise UserError(
            f"a copy of {name} (copy.deepcopy) shares {shared[0]} with the network, which would change as the copy is "
            "trained; it must have tensors of its own"
        )
    _ready(name, net)
    fold(type(net).__name__, net)
    if factory is None:
        key = digest(cache.weights_digest(net), cache.layers_digest(net, taken(net)))
        given.hold(key, net)
        return net, given.NAME, {"key": key}
    whole = networks.build(factory, args or {})
    try:
        whole.load_state_dict(net.state_dict())
    except RuntimeError as error:
        raise UserError(f"factory {factory} builds another network than the one given: {joined(error)}") from None
    return whole, factory, args or {}


def _state(name: str, network: nn.Module) -> dict[str, Any]:
    with explained(f"state_dict() of {name} fails"):
        state = dict(network.state_dict())
    if wrong := [key for key in state if not isinstance(key, str)]:
        raise UserError(f"{wrong[0]!r}, a key of {name}'s state_dict, must be a text: the name of a tensor")
    return state


def _ready(name: str, network: nn.Module) -> None:
    """Put a network on the CPU, into float32 and evaluation mode. UserError where methods of its own don't do so."""
    for method in ("cpu", "float", "train", "eval"):
        with explained(f"{method}() of {name} fails"):
            if getattr(network, method)() is not network:
                raise UserError(f"{method}() of {name} must return the network, as torch's does: return self")


def _equal(copied: Tensor, value: Tensor) -> bool:
    return copied.shape == value.shape and bool((copied == value).all())


def task_of(network: nn.Module) -> tuple[str, int, int]:
    """Task, scale and channels of a network by what it makes of an image; the first of each where it makes none."""
    image = taken(network)
    if image is None:
        return TASKS[0], 2, 3
    _, channels, side, _ = image.shape
    made = cost.shape(network, tuple(image.shape))
    if channels == 4:
        if made[1:] != (3, 2 * side, 2 * side):
            raise UserError(
                f"the network takes 4 channels and makes {tuple(made)} of (1, 4, {side}, {side}); images have "
                "3 channels (RGB), 1 (luma) or 4 (packed Bayer, of which RGB twice as large is made)"
            )
        return "low_light", 2, 3
    if len(made) != 4:
        raise UserError(
            f"the network makes {tuple(made)} of (1, {channels}, {side}, {side}); an image is needed, "
            f"(1, {channels}, height, width)"
        )
    scale = made[2] // side
    return ("super_resolution", scale, channels) if scale > 1 else ("restoration", 1, channels)


def taken(network: nn.Module) -> Tensor | None:
    """A black image that the network takes, [1, 3 or 1 or 4, side, side]; None where it takes none of those tried."""
    for channels, side in itertools.product((3, 1, 4), (48, 64, 120, 126, 128)):
        try:
            cost.shape(network, (1, channels, side, side))
        except UserError:
            continue
        return torch.zeros(1, channels, side, side, dtype=torch.float32)
    return None


def values_of(name: str, section: dict[str, Any], images: Path | str, noise: float | None) -> dict[str, Any]:
    """presets/small.yaml with this network alone; its images are told by their folder."""
    values, task, folder = read_yaml(SETTINGS), section["task"], Path(images)
    if task not in TASKS:
        raise UserError(f"task is {task!r}; allowed are {', '.join(TASKS)}")
    like = "sid" if task == "low_light" else "edsr"
    paired = (folder / "inputs").is_dir() and (folder / "targets").is_dir()
    prepare: dict[str, Any] = {"layout": "paired" if paired else "photographs", "folder": str(images)}
    if task == "low_light":
        prepare = values["prepare"]["sid"] | prepare
    if noise is not None:
        prepare["noise"] = noise
    elif task == "restoration" and not paired:
        raise UserError(
            f"noise is missing: {folder} has no inputs/ and targets/, and of photographs alone, restoration takes away "
            "noise made here (its standard deviation, in 8-bit levels)"
        )
    for key in ("train", "analyze", "retrain", "tolerance", "finetune"):
        values[key] = {name: values[key][like]}
    values["networks"], values["prepare"] = {name: section}, {name: prepare}
    values["threads"] = torch.get_num_threads()
    return values


def fit_sides(values: dict[str, Any], name: str, multiple: int) -> None:
    """Sides of images, patches, and of what is counted and timed that are multiples of what the network takes."""
    section, train = values["networks"][name], values["train"][name]
    section["multiple"] = multiple
    train["patch"] = multiple * math.ceil(train["patch"] / multiple)
    height, width = values["analyze"][name]["size"]
    values["analyze"] = {name: {"size": [max(multiple, side - side % multiple) for side in (height, width)]}}
    step = math.lcm(16, multiple)
    side = step * math.ceil(64 / step)
    values["latency"] = {"sides": [side, 2 * side], "repeats": 5}


def file_of(path: Path | str) -> Path:
    check_path("path", path)
    if not Path(path).name:  # "." and "" are folders
        raise UserError(f"{path} is a folder; the name of a file to write is needed")
    return destination(Path(path))
