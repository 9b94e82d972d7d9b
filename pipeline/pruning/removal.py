"""Groups of coupled channels, and how to remove channels of them: by cutting a network, or by masking a copy."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pipeline.networks import checkpoint, duplicate
from pipeline.networks.checkpoint import tensors
from pipeline.pruning.labels import owner

Removed = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Slot:
    """Where a group's channels sit in one parameter or buffer, or in an attribute that gives the size of a split."""

    tensor: str  # state_dict name, such as "body.0.conv1.weight"; or the attribute's, such as "body.0.distilled"
    dim: int  # the dimension of that tensor which is indexed by channel; or the number's place in the attribute
    index: tuple[tuple[int, ...], ...]  # [C_g][k]: the k places of each group channel along dim, ascending
    # "output": a kernel's side that makes the channel; "input": the side that reads it; "channel": bias, norm;
    # "size": an attribute that counts it
    role: str

    @property
    def module(self) -> str:
        """Name of the module that owns the tensor; for a parameter of the network itself, the parameter's name."""
        return owner(self.tensor)


@dataclass(frozen=True)
class Group:
    """Channels with the same makers and readers. Each one of them can go, all its places at once.

    In a grouped or depthwise convolution a whole conv group is one channel; its kernel has one slot, role "output", on
    dimension 0 (for a transposed one this is the input side), and no "input" slot.
    """

    name: (
        str  # the first convolution that makes the channels, "+n" for n more, "#n" for its n-th group if it has several
    )
    channels: int
    slots: tuple[Slot, ...]  # in order of execution
    exact: bool = True  # False: a normalisation takes its statistics over the channels, so over fewer once some go

    @property
    def producers(self) -> tuple[str, ...]:
        """Modules (convolutions, linear layers) that make the channels, in order of execution."""
        return tuple(dict.fromkeys(slot.module for slot in self.slots if slot.role == "output"))

    @property
    def readers(self) -> tuple[str, ...]:
        """Modules (convolutions, linear layers) that read the channels, in order of execution."""
        return tuple(dict.fromkeys(slot.module for slot in self.slots if slot.role == "input"))


@dataclass(frozen=True)
class Coupling:
    groups: tuple[Group, ...]  # removable ones, in order of execution
    frozen: tuple[str, ...]  # a sentence for each set of layers whose channels, or some of them, stay, and the cause


def kept_indices(network: nn.Module, coupling: Coupling, removed: Removed) -> dict[str, dict[int, list[int]]]:
    """What stays: tensor name -> dimension -> kept indices of the network given, for every tensor that shrinks.
    An attribute that gives sizes counts as a tensor of those sizes.

    `removed` maps a group's name to the group channels that go. Raises ValueError for a group that doesn't exist, a
    channel outside of it, or a removal of all its channels.
    """
    shapes = checkpoint.shapes(network)
    return {
        name: {dim: [i for i in range(shapes[name][dim]) if i not in gone] for dim, gone in dims.items()}
        for name, dims in gone_indices(coupling, removed).items()
    }


def gone_indices(coupling: Coupling, removed: Removed) -> dict[str, dict[int, set[int]]]:
    groups = {group.name: group for group in coupling.groups}
    gone: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name, channels in removed.items():
        if name not in groups:
            raise ValueError(f"no removable group is named {name!r}; there are {', '.join(groups) or 'none'}")
        group = groups[name]
        outside = [channel for channel in channels if not 0 <= channel < group.channels]
        if outside:
            raise ValueError(f"group {name} has channels 0 to {group.channels - 1}, so {outside[0]} can't be removed")
        if len(set(channels)) == group.channels:
            raise ValueError(f"group {name} would lose all of its {group.channels} channels; at least one must stay")
        for slot in group.slots if len(channels) else ():
            gone[slot.tensor][slot.dim].update(place for channel in channels for place in slot.index[channel])
    return gone


def remove(network: nn.Module, coupling: Coupling, removed: Removed) -> nn.Module:
    """A smaller dense copy of the network without the removed channels; the network itself is left as it is.

    It computes what `masked` computes, but for groups that aren't exact: statistics over their channels are then those
    of the kept ones. Arguments and errors as for `kept_indices`.
    """
    smaller = duplicate(network)
    checkpoint.resize(smaller, kept_indices(network, coupling, removed))
    return smaller


def masked(network: nn.Module, coupling: Coupling, removed: Removed) -> nn.Module:
    """A copy of the same size in which no layer reads the removed channels: the reference for `remove`.

    Statistics over channels of groups that aren't exact are still over all of them; `norms.over_kept` changes that.
    Arguments and errors as for `kept_indices`.
    """
    gone_indices(coupling, removed)  # the same refusals
    whole = duplicate(network)
    silence(whole, coupling, removed)
    return whole


def silence(network: nn.Module, coupling: Coupling, removed: Removed) -> None:
    """Let no layer read the removed channels, in place."""
    held = tensors(network)
    with torch.no_grad():
        for group in coupling.groups:
            for slot in group.slots:
                places = [place for channel in removed.get(group.name, ()) for place in slot.index[channel]]
                if slot.role == "input" and places:
                    held[slot.tensor].index_fill_(slot.dim, torch.tensor(places, device=held[slot.tensor].device), 0.0)


def narrow(coupling: Coupling, removed: Removed) -> Coupling:
    """The coupling of the network that `remove` gives, without tracing it.

    Equal to `find_groups` of that network while every group keeps two channels: with one left, a layer may no longer
    look grouped, or a channel may look like one that is broadcast. Errors as for `kept_indices`.
    """
    gone = {name: {dim: sorted(g) for dim, g in dims.items()} for name, dims in gone_indices(coupling, removed).items()}
    groups = []
    for group in coupling.groups:
        stays = [channel for channel in range(group.channels) if channel not in set(removed.get(group.name, ()))]
        slots = []
        for slot in group.slots:
            before = gone.get(slot.tensor, {}).get(slot.dim, [])
            index = tuple(tuple(i - bisect.bisect_left(before, i) for i in slot.index[channel]) for channel in stays)
            slots.append(replace(slot, index=index))
        groups.append(replace(group, channels=len(stays), slots=tuple(slots)))
    return Coupling(tuple(groups), coupling.frozen)
