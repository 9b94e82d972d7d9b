"""Coupled channels: which channels of a network can only be removed together, and how to remove them.

`find_groups` reads this from the traced graph, so it holds for any network: a label for every channel is carried
through the operations (`tracing.py`), labels that meet are united, and what the network's input or output, an
unknown operation or a normalisation over channels touches is never removed. Where a forward may write sizes as numbers,
a trial decides: the shrunk network must run and agree with the masked one, or the channels are frozen and named.
"""

from __future__ import annotations

import bisect
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from pipeline.networks import checkpoint, duplicate
from pipeline.networks.checkpoint import tensors
from pipeline.pruning.labels import owner
from pipeline.pruning.tracing import follow

Removed = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Slot:
    """Where a group's channels sit in one parameter or buffer."""

    tensor: str  # state_dict name, such as "body.0.conv1.weight"
    dim: int  # the dimension of that tensor which is indexed by channel
    index: tuple[tuple[int, ...], ...]  # [C_g][k]: the k places of each group channel along dim, ascending
    role: (
        str  # "output": a kernel's side that makes the channel; "input": the side that reads it; "channel": bias, norm
    )

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


def find_groups(network: nn.Module, example: torch.Tensor) -> Coupling:
    """Find the coupled channel groups of a network.

    `example` is an input [N, C, H, W] of the network; a small one is enough and its values don't count. The network is
    left as it is. Raises UserError if its forward can't be traced. Grouping by dependency is also the idea of DepGraph
    (Fang et al., CVPR 2023); this is a different algorithm, on labels of single channels.
    """
    labels = follow(network, example)
    sites = [
        (tensor, dim, role, [labels.root(int(x)) for x in part]) for (tensor, dim), (part, role) in labels.sites.items()
    ]

    makers = [(owner(tensor), set(held)) for tensor, _, role, held in sites if role == "output"]
    makers += [(layer, {labels.root(int(x)) for x in part}) for layer, part in labels.makers]

    whole: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)  # layers -> why they stay whole
    fixed: set[int] = set()
    for part, reason in labels.freezes:
        roots = {labels.root(int(label)) for label in np.unique(part)}
        fixed |= roots
        layers = tuple(dict.fromkeys(layer for layer, outputs in makers if roots & outputs))
        if reason and layers:
            whole[layers][reason] = None
    doubts: dict[int, str] = {}  # channels behind sizes that may be numbers: a trial decides
    for part, reason in labels.suspects:
        for label in np.unique(part):
            doubts.setdefault(labels.root(int(label)), reason)

    names = aliases(network)
    idle = unused(network, {alias for name in labels.used for alias in names[name]})
    if idle:
        whole[idle]["the traced forward, in which these layers don't run"] = None
    candidates = {
        group: next((doubts[root] for root in roots if root in doubts), "")
        for group, roots in families(sites, fixed, names)
        if not fixed & set(roots)
    }
    accepted, refused = settle(network, example, candidates, 32 if idle else 1)
    for group, reason in refused.items():
        whole[group.producers][reason] = None
    return Coupling(tuple(accepted), tuple(sentence(layers, list(reasons)) for layers, reasons in whole.items()))


def sentence(layers: tuple[str, ...], reasons: list[str]) -> str:
    """Why the channels of some layers can't be removed: the first reason, and how many more there are."""
    more = f" and {len(reasons) - 1} more like it" if len(reasons) > 1 else ""
    return f"channels of {', '.join(layers)} can't be removed because of {reasons[0]}{more}"


def aliases(network: nn.Module) -> dict[str, list[str]]:
    """All names of each tensor: a weight that two modules share has two, and the trace uses one of them."""
    names = defaultdict(list)
    for name, tensor in tensors(network).items():
        names[id(tensor)].append(name)
    return {name: same for same in names.values() for name in same}


def unused(network: nn.Module, used: set[str]) -> tuple[str, ...]:
    """The layers of which no parameter was used: an auxiliary head, or a branch that the traced forward didn't take."""
    runs = {owner(name) for name in used}
    names = (owner(name) for name, _ in network.named_parameters(remove_duplicate=False) if name not in used)
    return tuple(dict.fromkeys(name for name in names if name not in runs))


def families(
    sites: list[tuple[str, int, str, list[int]]], fixed: set[int], names: dict[str, list[str]]
) -> list[tuple[Group, list[int]]]:
    """Gather united channels that sit in the same tensors, equally often, into groups, each with its roots."""
    places: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))  # root -> site -> indices
    for number, (_, _, _, held) in enumerate(sites):
        for index, root in enumerate(held):
            places[root][number].append(index)
    gathered: dict[tuple, list[int]] = defaultdict(list)
    for root, at in places.items():
        producers = [number for number in at if sites[number][2] == "output"]
        if producers:
            gathered[producers[0], root in fixed, tuple((number, len(where)) for number, where in at.items())].append(
                root
            )

    groups = []
    for (first, _, signature), roots in sorted(gathered.items()):  # an order that a removal doesn't change
        roots.sort(key=lambda root: places[root][first])
        slots = tuple(
            Slot(name, sites[number][1], tuple(tuple(places[root][number]) for root in roots), sites[number][2])
            for number, _ in signature
            for name in names[sites[number][0]]
        )
        group = Group(owner(sites[first][0]), len(roots), slots)
        more = len(group.producers) - 1
        groups.append((replace(group, name=f"{group.name}+{more}") if more else group, roots))

    count = Counter(group.name for group, _ in groups)
    seen: Counter[str] = Counter()
    for position, (group, roots) in enumerate(groups):
        if count[group.name] > 1:
            seen[group.name] += 1
            groups[position] = (replace(group, name=f"{group.name}#{seen[group.name]}"), roots)
    return groups


def settle(
    network: nn.Module, example: torch.Tensor, candidates: dict[Group, str], runs: int
) -> tuple[list[Group], dict[Group, str]]:
    """Try removals, and refuse the groups whose removal the forward doesn't follow.

    A group behind sizes that may be numbers is tried by itself with several counts, because half sizes such as
    `channels // 2` follow some counts by luck. Then all groups are tried at once, and only if that fails one by one.
    Training mode is tried too, in case the forward takes another way there; runs: how often, because chance may
    choose the way. With more than one, a larger image is tried as well.
    """
    rng = torch.Generator().manual_seed(0)
    trial = duplicate(network).eval().requires_grad_(False)
    for tensor in trial.parameters():  # a scale that training starts from zero would hide a wrong result
        if tensor.is_floating_point():
            fan = tensor[0].numel() if tensor.dim() > 1 and len(tensor) > 1 else 1
            drawn = (
                torch.randn(tensor.shape, generator=rng) / fan**0.5
                if fan > 1
                else torch.rand(tensor.shape, generator=rng) + 0.5
            )
            tensor.copy_(drawn)
    image = torch.rand(example.shape, generator=rng).to(example)
    ways = [("in training", image.repeat(2, 1, 1, 1), seed) for seed in range(runs)]
    ways += [("on a larger image", image.repeat(1, 1, 2, 2), 0)] if runs > 1 else []
    ways = [way for way in ways if not failure(duplicate(trial), *way)]

    def fault(removed: dict[Group, Sequence[int]]) -> str:
        """Why the shrunk network doesn't do what the masked one does; empty if it does."""
        coupling = Coupling(tuple(removed), ())
        indices = {group.name: gone for group, gone in removed.items()}
        with torch.no_grad():
            try:
                small = remove(trial, coupling, indices)
                made = small(image)
            except Exception as error:  # whatever a forward may raise when its tensors are smaller
                return f"a forward that fails when channels go ({(str(error) or type(error).__name__).splitlines()[0]})"
            whole = masked(trial, coupling, indices)(image)
        made, whole = (torch.nan_to_num(out, posinf=0.0, neginf=0.0) for out in (made, whole))  # log of random values
        tolerance = torch.finfo(whole.dtype).eps ** 0.5 * float(whole.abs().max().clamp(min=1e-6))
        if made.shape != whole.shape or not float((made - whole).abs().max()) <= tolerance:
            return "a forward that gives another result when channels go"
        fault = next(filter(None, (failure(small, *way) for way in ways)), "")
        return fault and f"a forward that fails {fault}"

    refused = {}
    for group, doubt in candidates.items():
        if doubt:
            every = range(group.channels)
            tries = dict.fromkeys(tuple(part) for part in (every[::2], every[:1], every[-1:], every[1:]))
            if any(fault({group: gone}) for gone in tries if 0 < len(gone) < group.channels):
                refused[group] = doubt
    accepted = {group: range(0, group.channels - 1, 2) for group in candidates if group not in refused}
    if fault(accepted):
        tried, accepted = accepted, {}
        for group, gone in tried.items():
            reason = fault(accepted | {group: gone})
            if reason:
                refused[group] = reason
            else:
                accepted[group] = gone
    return list(accepted), refused


def failure(network: nn.Module, way: str, images: torch.Tensor, seed: int) -> str:
    """How a network fails in training, or on another image; empty if it doesn't. The random state stays as it was."""
    state = random.getstate()
    with torch.no_grad(), torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            network.train(way == "in training")(images)
        except Exception as error:  # whatever a forward may raise when its tensors are smaller
            return f"{way} when channels go ({(str(error) or type(error).__name__).splitlines()[0]})"
        finally:
            random.setstate(state)
    return ""


def kept_indices(network: nn.Module, coupling: Coupling, removed: Removed) -> dict[str, dict[int, list[int]]]:
    """What stays: tensor name -> dimension -> kept indices of the network given, for every tensor that shrinks.

    `removed` maps a group's name to the group channels that go. Raises ValueError for a group that doesn't exist, a
    channel outside of it, or a removal of all its channels.
    """
    shapes = {name: tensor.shape for name, tensor in tensors(network).items()}
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

    It computes what `masked` computes. Arguments and errors as for `kept_indices`.
    """
    smaller = duplicate(network)
    checkpoint.resize(smaller, kept_indices(network, coupling, removed))
    return smaller


def masked(network: nn.Module, coupling: Coupling, removed: Removed) -> nn.Module:
    """A copy of the same size in which no layer reads the removed channels: the reference for `remove`.

    Arguments and errors as for `kept_indices`.
    """
    gone_indices(coupling, removed)  # the same refusals
    whole = duplicate(network)
    held = tensors(whole)
    with torch.no_grad():
        for group in coupling.groups:
            for slot in group.slots:
                places = [place for channel in removed.get(group.name, ()) for place in slot.index[channel]]
                if slot.role == "input" and places:
                    held[slot.tensor].index_fill_(slot.dim, torch.tensor(places, device=held[slot.tensor].device), 0.0)
    return whole


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
