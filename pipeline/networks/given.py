"""Networks that a program hands over as objects, where params.yaml would name a function that builds them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from pipeline.errors import UserError
from pipeline.networks import duplicate

if TYPE_CHECKING:
    from torch import nn

NAME = "pipeline.networks.given:build"  # the factory's name, in files and for networks.build
_HELD: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()


def hold(key: str, network: nn.Module) -> None:
    """From now on, and as long as somebody holds the network, `build(key)` copies it."""
    _HELD[key] = network


def build(key: str) -> nn.Module:
    """A copy of the network that was handed over under this key."""
    if key not in _HELD:
        raise UserError(
            "the network was handed over by a program, so that nothing says how to build it: "
            "checkpoint.load(path, NETWORK) takes one that was built anew"
        )
    return duplicate(_HELD[key])
