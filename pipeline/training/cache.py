"""Trainings that were done before: what each ended with, under a key of all that it depends on.

Training is deterministic, so the same network trained by the same recipe on the same images is the same network again:
methods whose first iterations remove the same channels, and trials of a study, share the work. One process writes a
file under a temporary name and renames it, so that two writers, or one that is killed, leave whole files.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.files import digest, load_tensors, save_tensors
from pipeline.networks import rebuilt
from pipeline.training import devices
from pipeline.training.device import Machine

KEPT = 300  # files; the oldest go


def key(network: nn.Module, machine: Machine, *parts: Any) -> str:
    """Names a training: the network's weights and layers, the machine and its threads, the code, and `parts`."""
    return digest(weights_digest(network), layers_digest(network), _machine(machine), _code(), *parts)


def weights_digest(network: nn.Module) -> str:
    """A hash of all parameters and buffers, with their names and shapes."""
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def layers_digest(network: nn.Module) -> str:
    """A hash of what a network does with its weights: its layers, which of them train, numbers and code of its own.

    Code: that of the methods of its modules' classes, and of what they call outside of libraries. Whole numbers beside
    the weights don't count: some are counters.
    """
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    numbers = {name: repr(value) for name, value in rebuilt.held(network).items() if isinstance(value, float)}
    found: dict[Any, Any] = {}
    for kind in {kind for module in network.modules() for kind in type(module).__mro__}:
        if not kind.__module__.startswith("torch."):
            _add(kind, found)
    return digest(str(network), trained, numbers, sorted(found.values(), key=repr))


def _add(value: object, found: dict[Any, Any]) -> None:
    """Add what a class or a function does, and what it calls outside of libraries."""
    if isinstance(value, type) and value not in found:
        found[value] = value.__qualname__
        for word, one in vars(value).items():
            _add(getattr(one, "fget", None) or getattr(one, "__func__", one), found)  # of a property, a static method
            if not word.startswith("__") and (constant := _plain(one)):
                found[value, word] = [value.__qualname__, word, constant]
    elif isinstance(value, FunctionType) and (value.__qualname__, value.__code__) not in found:
        defaults = [_plain(one) for one in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())]
        found[value.__qualname__, value.__code__] = [value.__qualname__, _compiled(value.__code__), defaults]
        for word, one in _named(value.__code__, value.__globals__).items():
            if isinstance(one, type | FunctionType):
                if not _in_a_library(one.__module__):
                    _add(one, found)
            elif constant := _plain(one):
                found[value.__module__, word] = [word, constant]


def _named(code: CodeType, names: dict[str, Any]) -> dict[str, Any]:
    """What a function's code names of its module, and of modules that it names."""
    named = {word: names[word] for word in code.co_names if word in names}
    for module in [value for value in named.values() if isinstance(value, ModuleType)]:
        if not _in_a_library(module.__name__):
            named |= {f"{module.__name__}.{word}": vars(module)[word] for word in code.co_names if word in vars(module)}
    for one in code.co_consts:  # functions inside of it
        if isinstance(one, CodeType):
            named |= _named(one, names)
    return named


def _plain(value: object) -> str | None:
    """A constant in words; None for what has others in each process."""
    return repr(value) if isinstance(value, bool | int | float | str | tuple) and " at 0x" not in repr(value) else None


def _in_a_library(module: str) -> bool:
    """Whether a module comes with Python or was installed."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return module.partition(".")[0] in sys.stdlib_module_names or "site-packages" in file


def _compiled(code: CodeType) -> list[Any]:
    """What a function does, without its file and lines: a comment in it changes nothing."""
    constants = [
        _compiled(one) if isinstance(one, CodeType)
        else sorted(map(repr, one)) if isinstance(one, frozenset)  # its order is another in each process
        else repr(one)
        for one in code.co_consts
    ]  # fmt: skip
    return [code.co_code.hex(), code.co_names, constants]


def remembered(folder: Path | None, name: str, network: nn.Module, train: Callable[[], Any]) -> bool:
    """Give the network the weights that the training of that name ended with, or train and keep them.

    Its weights then lie in memory as after that training: the last bits of what it computes depend on that.
    Returns whether they were there. What `train` raises is raised, and nothing is kept. Without a folder it trains.
    """
    path = folder / f"{name}.pt" if folder is not None else None
    if path is not None and path.exists():
        try:
            network.load_state_dict(load_tensors(path))
            network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # as a training leaves it
            return True
        except (UserError, RuntimeError, AttributeError, TypeError):  # damaged: it is trained again and replaced
            pass
    train()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, network.state_dict())
        _forget_the_oldest(path.parent)
    return False


def _forget_the_oldest(folder: Path) -> None:
    ages = {}
    for path in folder.glob("*.pt"):
        try:
            ages[path] = path.stat().st_mtime
        except FileNotFoundError:  # another process was faster
            continue
    for path in sorted(ages, key=lambda path: ages[path])[:-KEPT]:
        path.unlink(missing_ok=True)


def _machine(machine: Machine) -> list[str]:
    """What the bits depend on beside numbers in params.yaml."""
    name = torch.cuda.get_device_name() if machine.device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return [machine.device.type, name, f"{machine.bf16}", f"{torch.get_num_threads()}", torch.__version__,
            platform.node(), platform.machine(), f"{devices.count()}"]  # fmt: skip


@cache
def _code() -> str:
    """A hash of the code that trains: the rooms below this package."""
    root = Path(__file__).parents[1]
    return digest(*sorted(path for room in ("training", "data", "networks") for path in (root / room).glob("*.py")))
