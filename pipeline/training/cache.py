"""Trainings that were done before: what each ended with, under a key of all that it depends on.

Training is deterministic, so the same network trained by the same recipe on the same images is the same network again:
methods whose first iterations remove the same channels, and trials of a study, share the work. One process writes a
file under a temporary name and renames it, so that two writers, or one that is killed, leave whole files.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.files import digest, load_tensors, save_tensors
from pipeline.networks import duplicate, rebuilt
from pipeline.training import devices
from pipeline.training.device import Machine

KEPT = 300  # files; the oldest go


def key(network: nn.Module, example: Tensor, machine: Machine, *parts: Any) -> str:
    """Names a training: the network's weights and layers, the machine and its threads, the code, and `parts`.

    example: an input [1, C, H, W] of the network; its values don't matter.
    """
    return digest(weights_digest(network), layers_digest(network, example), _machine(machine), _code(), *parts)


def weights_digest(network: nn.Module) -> str:
    """A hash of all parameters and buffers, with their names and shapes."""
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def layers_digest(network: nn.Module, example: Tensor | None) -> str:
    """A hash of what a network does with its weights: its layers, which of them train, numbers and code of its own.

    Code: that of the methods of its modules' classes. What these call, and what else the modules hold, counts by what
    the network makes of an image like `example`, [1, C, H, W]. Whole numbers beside the weights don't count by
    themselves: some are counters.
    """
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    numbers = {name: repr(value) for name, value in rebuilt.held(network).items() if isinstance(value, float)}
    kinds = {kind for module in network.modules() for kind in type(module).__mro__}
    methods = [
        (f"{kind.__qualname__}.{name}", _compiled(code))
        for kind in kinds
        if not kind.__module__.startswith("torch.")
        for name, value in vars(kind).items()
        if isinstance(code := getattr(getattr(value, "__func__", value), "__code__", None), CodeType)
    ]
    # in plain memory, as the same weights lie in it in any process: the last bits of an output depend on that
    plain = duplicate(network).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    made = None if example is None else rebuilt.trace(plain, example)
    return digest(str(network), trained, numbers, sorted(methods, key=repr), made)


def _compiled(code: CodeType) -> list[Any]:
    """What a function does, without its file and lines: a comment in it changes nothing."""
    constants = [
        _compiled(one) if isinstance(one, CodeType)
        else sorted(map(repr, one)) if isinstance(one, frozenset)  # its order is another in each process
        else repr(one)
        for one in code.co_consts
    ]  # fmt: skip
    return [code.co_code.hex(), code.co_names, code.co_varnames, code.co_argcount, code.co_kwonlyargcount, constants]


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
