"""Of a forward that returns several tensors, the one that is trained and judged.

It is chosen by a hook, so that the network's layers keep their names, and `all_of` brings the others back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import nn

Output = int | str  # a place in a list or tuple, from 0, or a dictionary's key


@dataclass(frozen=True)
class _Choice:
    """A forward hook: torch returns what it gives in place of the forward's own result."""

    output: Output

    def __call__(self, network: nn.Module, inputs: Any, made: Any) -> Any:
        if isinstance(made, Mapping):
            there: list[Any] = list(made)
        elif isinstance(made, list | tuple):
            there = list(range(len(made)))
        else:
            return made  # a forward may return several tensors in training alone
        if self.output not in there:
            listed = ", ".join(map(repr, there))
            raise UserError(
                f"output is {self.output!r}, but the forward of {type(network).__name__} returns {listed or 'nothing'}"
            )
        if made[self.output] is None:  # torch would take it for a hook that changes nothing
            raise UserError(
                f"output is {self.output!r}, for which the forward of {type(network).__name__} returns None"
            )
        return made[self.output]


def choose(network: nn.Module, output: Output | None) -> nn.Module:
    """Let a network return this one of what its forward returns, in place; None changes nothing. Returns it.

    Calls raise UserError where there is no such one. A forward that returns a tensor isn't changed.
    """
    if output is not None:
        all_of(network).register_forward_hook(_Choice(output))
    return network


def chosen(network: nn.Module) -> Output | None:
    """What `choose` has chosen."""
    return next((hook.output for hook in network._forward_hooks.values() if isinstance(hook, _Choice)), None)


def all_of(network: nn.Module) -> nn.Module:
    """Let a network return all that its forward returns again, in place. Returns it."""
    for key, hook in list(network._forward_hooks.items()):
        if isinstance(hook, _Choice):
            del network._forward_hooks[key]
    return network
