"""Sizes that a network's modules keep as attributes beside their tensors, such as the widths of a split's parts.

Numbers in their methods become attributes when they are written (literals.py). A file names an attribute among what was
kept as it names a tensor: one dimension for each number that it holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pipeline.networks.literals import literals, replace


def sizes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Attributes that may be sizes: name, such as "block.distilled", -> the whole numbers of 1 or more that it holds.

    An attribute is one number, or a tuple or list of nothing else, or what `literals` names. Those of torch's own
    layers are left out: their tensors tell their sizes.
    """
    found = {}
    for path, module in network.named_modules():
        if type(module).__module__.partition(".")[0] != "torch":
            for key, value in (literals(module) | vars(module)).items():
                numbers = tuple(value) if type(value) in (tuple, list) else (value,)
                if numbers and all(type(number) is int and number > 0 for number in numbers):
                    found[f"{path}.{key}".removeprefix(".")] = numbers
    return found


def written(network: nn.Module) -> set[str]:
    """The names of those of `sizes` that are numbers in methods, and not attributes yet."""
    own = {path: literals(module) for path, module in network.named_modules()}
    return {f"{path}.{name}".removeprefix(".") for path, names in own.items() for name in names}


def write(network: nn.Module, name: str, numbers: Sequence[int]) -> None:
    """Give an attribute of `sizes` other numbers, in place; a list stays a list, and others keep the old one."""
    path, _, key = name.rpartition(".")
    module = network.get_submodule(path)
    held = vars(module)
    if key not in held:
        replace(module)
    held[key] = type(held[key])(numbers) if isinstance(held[key], tuple | list) else numbers[0]
