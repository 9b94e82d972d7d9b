"""A pruned network in a file: how to build the original, which channels each tensor kept, and the tensors.

The file holds plain values and tensors only, so that torch reads it without running code from it
(`torch.load(weights_only=True)`), and it loads without the pruner. Equal contents give equal bytes, whatever the
file's name.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pipeline.errors import UserError, joined
from pipeline.files import again, load_tensors, save_tensors, stage_of
from pipeline.networks import duplicate, input_channels, outputs, unfolded, unwrapped
from pipeline.networks.folded import fold, folded
from pipeline.networks.sizes import sizes, write

# parameter, buffer or attribute that gives sizes -> dimension -> original indices, in their new order
Kept = dict[str, dict[int, list[int]]]

LARGEST = 1e15  # of a weight: the squares of a million such weights still have a sum in float32

LARGEST_TRACED = 4 * 1024**2  # values of an input that is kept by its shape, to compare outputs with
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # torch computes with these alone

_FORMAT = "pruned network 1"
_KEYS: dict[str, type] = {"name": str, "args": dict, "kept": dict, "extra": dict, "state_dict": dict}


def save(
    path: Path,
    network: nn.Module,
    name: str,
    args: dict[str, Any],
    kept: Kept,
    extra: dict[str, Any] | None = None,
    example: Tensor | None = None,
) -> None:
    """Write a network that is networks.build(name, args) with all but the kept channels removed.

    kept: parameter or buffer name -> dimension -> original indices kept; what is not named is kept whole. A module's
    attribute that gives sizes (`networks/sizes.py`) is named alike: its number is then how many indices were kept.
    extra: metadata of the caller's: numbers, strings, booleans, None, and lists and dictionaries of them.
    example: an input [1, C, H, W] that the network takes, whatever its values; without it, one of 48×48 pixels.

    The file appears whole or not at all. Raises UserError when it cannot be written, or would load as a network that
    computes something else; ValueError when kept does not fit the network or a value is not plain.
    """
    from pipeline.networks import rebuilt

    state = network.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path} isn't written: '{key}' of its state_dict must be a tensor, not {type(value)}")
    present = shapes(network)  # a buffer that isn't persistent is cut too, though the file doesn't hold it
    for tensor, dims in kept.items():
        for dim, indices in dims.items():
            shape = present.get(tensor, ())
            if not 0 <= dim < len(shape) or len(indices) != shape[dim]:
                raise ValueError(f"kept does not fit the network: '{tensor}', dimension {dim}, {len(indices)} indices")
    content = {"name": name, "args": args, "kept": kept, "extra": extra or {}}
    plain = {"format": _FORMAT, **{key: _plain(value, key) for key, value in content.items()}}
    if outputs.chosen(network) is not None:
        plain["output"] = outputs.chosen(network)
    # Copied, because a tensor that is a view of a larger one would take the whole of it into the file.
    plain["state_dict"] = {
        sys.intern(key): value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    example = torch.zeros(1, input_channels(name), 48, 48) if example is None else example
    try:
        with rebuilt.aside(network):
            loaded = _filled(_whole(plain), plain)
        rebuilt.same(network, loaded, example)
    except UserError as error:
        raise UserError(f"{path} isn't written: {error}") from error
    traced = rebuilt.trace(loaded.cpu(), example)
    plain["trace"] = traced if _is_trace(traced) else None
    save_tensors(path, plain)


def load(path: Path | str, name: str | nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Read a network written by save, in eval mode on the CPU, and its metadata: name, args, kept, extra.

    name: the network that the caller expects. A file whose network comes from a factory (package.module:function)
    loads only when the caller gives that very name, since building it runs code that the file chose. Or the whole
    network itself, which is copied, cut and filled, whatever its weights and the name in the file. One that was saved
    with a chosen output returns that alone; outputs.all_of brings back the others.

    The random state is left as it was. Raises UserError for a file that is missing, unreadable, no checkpoint, of
    another network than asked for, or inconsistent.
    """
    path = Path(path)
    if not isinstance(name, str | nn.Module | None):  # such as a class; it is no leave to run what the file names
        kind = f"the class {name.__name__}" if isinstance(name, type) else type(name).__name__
        raise UserError(f"{path} is loaded into a network that is built, or by a factory's name, not {kind}")
    content = _read(path)
    stored: str = content["name"]
    if isinstance(name, str) and name != stored:
        raise UserError(f"{path} holds a checkpoint of '{stored}', but '{name}' is asked for")
    if ":" in stored and name is None:
        raise UserError(
            f"{path} holds a network of the factory '{stored}': ask for it by this name to run its code "
            "(checkpoint.load(path, NAME); --network NAME on a command line)"
        )
    try:
        given = unwrapped(name) if isinstance(name, nn.Module) else None
        network = _whole(content, given)
        with _remedied(path):
            network = _filled(network, content, given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if content.get("trace") is not None:
        from pipeline.networks import rebuilt

        with _remedied(path):
            if not rebuilt.follows(network, content["trace"]):
                raise UserError(
                    f"{path}: the network '{stored}' doesn't compute what it did when this was saved: its code has "
                    "changed, or it depends on something that isn't in its state_dict"
                )
    return network.eval(), _metadata(content)


def metadata(path: Path) -> dict[str, Any]:
    """What `load` gives beside the network, which isn't built: no code runs that the file names."""
    return _metadata(_read(path))


def _metadata(content: dict[str, Any]) -> dict[str, Any]:
    return {key: content[key] for key in ("name", "args", "kept", "extra")}


def _read(path: Path) -> dict[str, Any]:
    """The file's contents, checked: a dictionary with the keys of _KEYS."""
    content = load_tensors(path)
    with _remedied(path):
        _check(path, content)
    return content


@contextmanager
def _remedied(path: Path) -> Iterator[None]:
    """UserError raised within says which stage makes the file anew, if one does."""
    try:
        yield
    except UserError as error:
        if not stage_of(path):
            raise
        raise UserError(f"{error}; {again(path)}") from error


def _whole(content: dict[str, Any], given: nn.Module | None = None, plain: bool = True) -> nn.Module:
    """The network of a file's contents before anything was removed: a copy of the one given on the CPU, or built.

    plain: computed kernels are folded. The random states are left as they were.
    """
    with torch.random.fork_rng(devices=[]):
        network = unfolded(content["name"], content["args"]) if given is None else duplicate(given).cpu()
        if plain:
            fold(_name(content, given), network)
        return outputs.choose(network, content.get("output"))


def _name(content: dict[str, Any], given: nn.Module | None) -> str:
    return content["name"] if given is None else type(given).__name__


def _filled(network: nn.Module, content: dict[str, Any], given: nn.Module | None = None) -> nn.Module:
    """The whole network cut to a file's contents, with its tensors, in eval mode.

    Contents of a network whose kernels were computed when it was saved are filled into such a one, which is folded.
    """
    state = folded(content["state_dict"], network.state_dict())
    if state.keys() - network.state_dict().keys():
        computed = _whole(content, given, plain=False)
        if computed.state_dict().keys() == content["state_dict"].keys():
            _fill(computed, content, content["state_dict"])
            fold(_name(content, given), computed)
            return computed.eval()
    _fill(network, content, state)
    return network


def _fill(network: nn.Module, content: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Cut a whole network to a file's contents and put tensors in; it is in eval mode then."""
    resize(network, content["kept"])
    _check_state(network, state)
    try:
        # A network saved in double or half precision stays so.
        for key, tensor in tensors(network).items():
            if key in state:
                tensor.data = tensor.data.to(state[key].dtype)
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f"state_dict does not load: {joined(error)}") from error
    network.eval()


def resize(network: nn.Module, kept: Kept) -> None:
    """Cut a network's parameters and buffers down to the kept indices, in place, with the modules' channel counts
    and the attributes that give sizes.

    The one place where channels are removed: pruning calls it, and so does `load`. Values, requires_grad and tensors
    that modules share are preserved. Raises UserError, naming the tensor, when kept does not fit the network.
    """
    whole, counted = tensors(network), sizes(network)
    smaller: dict[int, Tensor] = {}  # by the whole tensor's id, so that a shared tensor stays shared
    for name, dims in kept.items():
        if name not in whole and name not in counted:
            raise UserError(f"kept names '{name}', which the network does not have")
        if name not in whole:
            for dim, indices in dims.items():
                _check_indices(name, counted[name], dim, indices)
            continue
        old = whole[name]
        new = old.detach()
        for dim, indices in dims.items():
            _check_indices(name, old.shape, dim, indices)
            new = new.index_select(dim, torch.tensor(indices, device=new.device))
        smaller[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    for name, tensor in whole.items():
        if id(tensor) in smaller:
            owner, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(owner), attribute, smaller[id(tensor)])
    for name, module in network.named_modules():
        prefix = f"{name}." if name else ""
        _update_counts(module, kept.get(f"{prefix}weight", {}).get(0))
    for name in kept.keys() - whole.keys():
        write(network, name, [len(kept[name].get(dim, range(size))) for dim, size in enumerate(counted[name])])


def shapes(network: nn.Module) -> dict[str, Sequence[int]]:
    """The sizes of all that `resize` cuts, by name: of parameters and buffers, and attributes that give sizes."""
    return {**sizes(network), **{name: tensor.shape for name, tensor in tensors(network).items()}}


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under every name that it has."""
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }


def _check_indices(name: str, shape: Sequence[int], dim: object, indices: object) -> None:
    if type(dim) is not int or not 0 <= dim < len(shape):
        raise UserError(f"kept of '{name}' names dimension {dim!r}, but the tensor has {len(shape)} dimensions")
    size = shape[dim]
    if (
        not isinstance(indices, list)
        or not indices
        or not all(type(index) is int and 0 <= index < size for index in indices)
        or len(set(indices)) != len(indices)
    ):
        raise UserError(f"kept of '{name}', dimension {dim}, must list different whole numbers from 0 to {size - 1}")


def _update_counts(module: nn.Module, kept_first: list[int] | None) -> None:
    """Set the channel counts that a module keeps beside its tensors, from the tensors' shapes.

    kept_first: original indices kept along the first dimension of its weight. They tell how many groups of a grouped
    convolution are left. The shape tells it only where whole groups went, as in pruning; a file may keep parts of some.
    """
    if isinstance(module, _ConvNd):
        transposed = isinstance(module, _ConvTransposeNd)
        first, second = module.weight.shape[:2]
        if kept_first is not None and module.groups > 1:
            per_group = (module.in_channels if transposed else module.out_channels) // module.groups
            module.groups = len({index // per_group for index in kept_first})
        if transposed:
            module.in_channels, module.out_channels = first, second * module.groups
        else:
            module.in_channels, module.out_channels = second * module.groups, first
    elif isinstance(module, _NormBase):
        tensor = module.weight if module.weight is not None else module.running_mean
        if tensor is not None:
            module.num_features = tensor.shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape


def _check(path: Path, content: Any) -> None:
    """UserError unless a file's contents are a dictionary with the keys of _KEYS."""
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UserError(f"{path} is not a checkpoint of a pruned network: its key 'format' is not '{_FORMAT}'")
    for key, kind in _KEYS.items():
        if not isinstance(content.get(key), kind):
            fault = "has the wrong type" if key in content else "is missing"
            raise UserError(f"{path}: key '{key}' {fault}, it must hold a {kind.__name__}")
    if not all(isinstance(key, str) for key in content["args"]):
        raise UserError(f"{path}: key 'args' must hold argument names")
    if not all(isinstance(key, str) and isinstance(dims, dict) for key, dims in content["kept"].items()):
        raise UserError(f"{path}: key 'kept' must map tensor names to dimensions to lists of indices")
    for key, tensor in content["state_dict"].items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor) or tensor.is_nested:  # nested: without a shape
            raise UserError(f"{path}: key 'state_dict' must map names to tensors")
    if not isinstance(content.get("output"), int | str | None):
        raise UserError(f"{path}: key 'output' must hold a whole number or a name")
    if content.get("trace") is not None and not _is_trace(content["trace"]):
        raise UserError(f"{path}: key 'trace' must hold the shape of an input and output values")


def _is_trace(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(value.get(key), list) for key in ("shape", "values")):
        return False
    shape, values = value["shape"], value["values"]
    if len(shape) != 4 or not all(type(side) is int and 0 < side <= 4096 for side in shape):
        return False
    # one image, and no large one: whoever loads the file runs it through the network
    small = shape[0] == 1 and math.prod(shape) <= LARGEST_TRACED
    return small and all(type(one) is float and math.isfinite(one) for one in values)


def _check_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    expected = network.state_dict(keep_vars=True)
    for key in expected:
        if key not in state:
            raise UserError(f"state_dict lacks '{key}'")
    for key, tensor in state.items():
        if key not in expected:
            raise UserError(f"state_dict holds '{key}', which the network does not have")
        if tensor.shape != expected[key].shape:
            shapes = f"{tuple(tensor.shape)} where kept asks for {tuple(expected[key].shape)}"
            raise UserError(f"state_dict holds '{key}' of shape {shapes}")
        check_values(key, tensor, expected[key])


def check_values(key: str, tensor: Tensor, expected: Tensor) -> None:
    """UserError unless a tensor's values may stand for those of the network's own tensor."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}".replace("torch.", "")
        raise UserError(f"'{key}' must be a dense tensor on the CPU, not {kind}")
    kinds = [(one.is_floating_point(), one.is_complex()) for one in (tensor, expected)]
    if kinds[0] != kinds[1] or (tensor.is_floating_point() and tensor.dtype not in FLOATS):
        raise UserError(f"'{key}' holds {tensor.dtype} where {expected.dtype} is expected")
    if not isinstance(expected, nn.Parameter) and torch.equal(tensor, expected.to(tensor.dtype)):
        return  # a mask may hold infinity, as it was built
    if tensor.is_floating_point():
        largest = tensor.abs().amax().item() if tensor.numel() else 0.0
        if not largest <= LARGEST:  # also true for NaN
            value = f"{largest:.2g}" if math.isfinite(largest) else "infinite values or NaN"
            raise UserError(f"'{key}' must be finite and at most {LARGEST:g}, but holds {value}")


def _plain(value: Any, where: str) -> Any:
    """A copy made of plain values with no object in it twice: the bytes must not depend on which objects were shared.

    Dictionaries are sorted, strings interned, numpy's numbers made Python's (weights_only refuses them).
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(value[key], f"{where}.{key}") for key in sorted(value, key=_order)}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    raise ValueError(f"'{where}' of a checkpoint must be plain numbers, strings, lists or dictionaries, not {value!r}")


def _order(key: Any) -> tuple[bool, Any]:
    """Sorts whole numbers before strings, which do not compare with each other."""
    return isinstance(key, str), key
