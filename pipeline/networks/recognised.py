"""The network that a file of weights is of, as the package spandrel recognises it (some 45 restoration architectures).

spandrel is optional. It sees tensors that were read here, and never the file: nothing in a file runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import networks
from pipeline.errors import UserError, first_line, joined
from pipeline.networks import duplicate
from pipeline.networks.folded import fold
from pipeline.networks.pretrained import read_state

MAX_REASON = 400  # characters: torch names every tensor that differs
_PLAIN = (bool, int, float, str, list, tuple, dict)
_NEEDED = (
    "`pip install spandrel` recognises a published network by its file; without it, name the factory that builds it"
)


def build(file: str) -> nn.Module:
    """The network that a file's weights are of, with them: the factory of `networks.NETWORK.file` in params.yaml."""
    with torch.device("cpu"):  # where another is set, there would be tensors without the file's values
        return duplicate(recognise(Path(file))[0])


def recognise(path: Path) -> tuple[nn.Module, str, dict[str, Any]]:
    """The network that a file's weights are of, with them, and its factory and arguments for networks.build.

    UserError without spandrel, and for a file that no architecture fits, or more than one.
    """
    state = read_state(path)  # first: a file that can't be read needs no package
    try:
        spandrel = importlib.import_module("spandrel")
    except Exception as error:  # a torchvision that doesn't fit torch raises RuntimeError
        missing = isinstance(error, ModuleNotFoundError) and error.name == "spandrel"
        reason = "" if missing else f" (spandrel can't be imported: {first_line(error)})"
        raise UserError(f"{path}: factory is missing, package.module:function; {_NEEDED}{reason}") from None
    state = spandrel.canonicalize_state_dict(state)
    fitting: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    known = spandrel.MAIN_REGISTRY.architectures("detection")
    for support in known:
        architecture = support.architecture
        if not support.detect(state):
            continue
        try:
            fitting[architecture.name] = architecture.load(dict(state)).model
        except Exception as error:  # whatever an architecture of another's raises for tensors that aren't its own
            reasons[architecture.name] = joined(error)
    if not fitting:
        raise UserError(
            f"{path}: none of the {len(known)} architectures of spandrel fits its {len(state)} tensors "
            f"({_nearest(reasons, known, state)}); name the factory that builds the network"
        )
    if len(fitting) > 1:
        raise UserError(f"{path}: {' and '.join(fitting)} fit its tensors; name the factory that builds the network")
    ((name, network),) = fitting.items()
    factory = f"{type(network).__module__}:{type(network).__qualname__}"
    # others are defaults that no file can hold: a class of layers, a function
    args = {key: value for key, value in network.hyperparameters.items() if isinstance(value, _PLAIN) or value is None}
    built = networks.build(factory, args)
    fold(factory, network)
    try:
        built.load_state_dict(network.state_dict())
    except RuntimeError as error:
        raise UserError(f"{path} is of {name}, which can't be built anew by {args}: {_short(joined(error))}") from None
    return built, factory, args


def _nearest(reasons: dict[str, str], known: Sequence[Any], state: Mapping[str, torch.Tensor]) -> str:
    """What a file that none fits is nearest to, and what differs; where no architecture knows its names, all tried.

    reasons: what each architecture said that knew the names of the file's tensors. Who has least to say is nearest.
    """
    if not reasons:
        names = ", ".join(sorted(support.architecture.name for support in known))
        return f"none knows the names of its tensors, such as {next(iter(state), '')!r}; tried were {names}"
    name = min(reasons, key=lambda name: len(reasons[name]))
    others = ", ".join(sorted(reasons.keys() - {name}))
    return f"nearest is {name}: {_short(reasons[name])}" + (f"; also tried: {others}" if others else "")


def _short(reason: str) -> str:
    return reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}…"
