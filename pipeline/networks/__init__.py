"""The networks to prune, by name.

edsr.py and sid.py are the paper's. checkpoint.py saves, cuts and loads a network, rebuilt.py checks that what loads is
what was saved, pretrained.py reads other projects' weights. sizes.py finds the attributes that give sizes, literals.py
the numbers in methods that do, outputs.py chooses one of the tensors that a forward returns, folded.py makes computed
kernels plain, branches.py blocks of several branches.

Importing this package does not import torch, so that parameters can be checked before anything heavy is loaded.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError, explained
from pipeline.networks import outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

# Height and width of the network's input at which Table 1 of the ICIP 2019 paper counts. SID's input is packed raw:
# half the height and width of the sensor's 2848 × 4256 pixels.
PAPER_SIZE: dict[str, tuple[int, int]] = {"edsr": (1020, 1020), "sid": (1424, 2128)}
PAPER_ARGS: dict[str, dict[str, int]] = {"edsr": {"scale": 2, "blocks": 16, "channels": 64}, "sid": {"base": 32}}

_INPUT_CHANNELS = {"edsr": 3, "sid": 4}
_GIVEN: dict[int, weakref.ref[object]] = {}  # what factories have returned
_ALLOWED = "edsr, sid or a factory written as package.module:function"


def build(name: str, args: dict[str, Any], output: outputs.Output | None = None) -> nn.Module:
    """Build a network with fresh weights.

    name: "edsr", "sid", or "package.module:function", a factory that is imported and called with `args`.
    args: the keyword arguments of the network's constructor or of the factory.
    output: which of the tensors that its forward returns it is to return (outputs.choose).

    Raises UserError for an unknown name, for arguments that do not fit, and for a factory that cannot be imported,
    fails, or returns anything but a torch module. A factory is code that runs: never take its name from a file that
    is not trusted.
    """
    network = unfolded(name, args)
    if name not in _INPUT_CHANNELS:
        from pipeline.networks.folded import estimate, fold

        estimate(network)
        fold(name, network)
    return outputs.choose(network, output)


def unfolded(name: str, args: dict[str, Any]) -> nn.Module:
    """What `build` builds as its factory gives it, with its computed kernels: published weights are of this."""
    factory = _factory(name)
    _check_arguments(name, factory, args)
    if name in _INPUT_CHANNELS:
        affordable(name, args)
        return factory(**args)
    with explained(f"network factory '{name}' failed"):
        network = factory(**args)
    from torch import nn

    _new(name, network)
    if not isinstance(network, nn.Module):
        raise UserError(f"network factory '{name}' must return a torch.nn.Module, not {type(network).__name__}")
    check_complete(f"network factory '{name}'", network)
    return network


def check_complete(giver: str, network: nn.Module) -> None:
    """UserError, which names who gave the network, for layers without sizes or values, and for TorchScript.

    The code of what TorchScript made can't be followed, nor its layers cut.
    """
    import torch
    from torch.nn.parameter import is_lazy

    for key, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"{giver} gives what torch.jit.script or torch.jit.trace made{f', as {key}' if key else ''}, which "
                "can't be pruned; the torch.nn.Module that it was made of is needed"
            )
    unsized = [tensor for tensor, parameter in network.named_parameters() if is_lazy(parameter)]
    if unsized:
        raise UserError(f"{giver} leaves the size of {unsized[0]} open; lazy layers aren't allowed")
    for kind, tensors in (("parameter", network.named_parameters()), ("buffer", network.named_buffers())):
        for tensor, value in tensors:
            if value.is_meta:
                raise UserError(
                    f"{giver} leaves {kind} {tensor} on the meta device, without values; all must be on the CPU"
                )


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself of what DataParallel, DistributedDataParallel or torch.compile made around it."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while True:
        if type(network).__name__ == "OptimizedModule":  # torch.compile's; its class lies in what takes long to import
            network = network._orig_mod  # type: ignore[assignment]
        elif isinstance(network, DataParallel | DistributedDataParallel):
            network = network.module
        else:
            return network


def affordable(name: str, args: dict[str, Any]) -> None:
    """UserError when the network's tensors can't fit in this machine's memory. They are counted without being made.

    A factory is called once more for it; one that can't build without contents isn't judged here.
    """
    import torch

    factory, needed, network = _factory(name), 0, None
    _check_arguments(name, factory, args)
    with contextlib.suppress(UserError), explained(name), torch.device("meta"):  # `build` says what is wrong
        network = factory(**args)
    if isinstance(network, torch.nn.Module):
        _new(name, network)
        needed = sum(tensor.nbytes for tensor in [*network.parameters(), *network.buffers()])
    if needed > memory():
        listed = ", ".join(f"{key}: {value!r}" for key, value in args.items())
        raise UserError(
            f"network '{name}': with args {{{listed}}} its parameters take {gigabytes(needed)} of memory, "
            f"but this machine has {gigabytes(memory())}"
        )


def _new(name: str, network: object) -> None:
    """UserError when a factory has given this very object before: loading one network would change the other."""
    if id(network) in _GIVEN and _GIVEN[id(network)]() is network:
        raise UserError(f"network factory '{name}' gives the same network at each call; it must build a new one")
    with contextlib.suppress(TypeError):  # no weak reference to such an object: it isn't a network
        _GIVEN[id(network)] = weakref.ref(network)


def memory() -> int:
    """Bytes of this machine's memory, or of its share where a container (Linux's cgroup 2) has less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(limits)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"


def duplicate(network: nn.Module, replaced: Mapping[int, Tensor] | None = None) -> nn.Module:
    """A deep copy that shares no parameter or buffer with the network.

    replaced: what stands in the copy in place of tensors, by the id of each.

    `copy.deepcopy` refuses a network after a training step if its forward has left a result somewhere: a feature kept
    for a loss, the kernel of an old weight_norm. Such results are detached, and shared until the next forward.
    """
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    class Detached(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            if func is Tensor.__deepcopy__ and args[0].grad_fn is not None:
                return args[0].detach()
            return func(*args, **(kwargs or {}))

    memo: dict[int, Any] = dict(replaced or {})
    for module in network.modules():
        for value in vars(module).values():
            if type(value) is OrderedDict and not value:  # a module has a dozen: of hooks, of parameters
                memo[id(value)] = OrderedDict()  # what a deep copy of it is, a hundred times as fast
    with Detached():
        return copy.deepcopy(network, memo)


def input_channels(name: str) -> int:
    """Channels of the network's input by its name alone: 4 (packed Bayer) or 3 (RGB), as a factory's is taken to be.

    params.yaml says more: config.Network.input_channels. Raises UserError for an unknown name.
    """
    if ":" in name:
        return 3
    if name not in _INPUT_CHANNELS:
        raise UserError(f"unknown network '{name}': allowed are {_ALLOWED}")
    return _INPUT_CHANNELS[name]


def check_whole_number(network: str, argument: str, value: object, lowest: int, highest: int | None = None) -> None:
    """Raise UserError, naming network and argument, unless value is an int within lowest..highest, both included."""
    if isinstance(value, int) and not isinstance(value, bool) and lowest <= value and (not highest or value <= highest):
        return
    allowed = f"a whole number from {lowest} to {highest}" if highest else f"a whole number of at least {lowest}"
    raise UserError(f"network '{network}': {argument} must be {allowed}, not {value!r}")


def _factory(name: str) -> Callable[..., nn.Module]:
    if name == "edsr":
        from pipeline.networks.edsr import EDSR

        return EDSR
    if name == "sid":
        from pipeline.networks.sid import SID

        return SID
    module_name, _, function_name = name.partition(":")
    if not function_name or not module_name or module_name.startswith("."):
        raise UserError(f"unknown network '{name}': allowed are {_ALLOWED}")
    with explained(f"network factory '{name}' cannot be imported"):
        module = importlib.import_module(module_name)
        function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"network factory '{name}': module '{module_name}' has no function '{function_name}'")
    return function


def _check_arguments(name: str, factory: Callable[..., nn.Module], args: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some callables written in C have none: calling them will tell
        return
    try:
        signature.bind(**args)
    except TypeError as error:
        allowed = ", ".join(signature.parameters) or "none"
        raise UserError(f"network '{name}' cannot be built: {error} (allowed arguments: {allowed})") from error
