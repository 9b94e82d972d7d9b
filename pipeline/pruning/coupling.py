"""Coupled channels: which channels of a network can only be removed together.

`find_groups` reads this from the traced graph, so it holds for any network: a label for every channel is carried
through the operations (`tracing.py`), labels that meet are united, and what the network's input or output or an
unknown operation touches is never removed; neither is what reaches the image through kernels that training doesn't
change, nor, unless it is asked for, what a normalisation over channels touches (`norms.py`). What is left is tried
(`trials.py`): the shrunk network must run and agree with the masked one, or the channels are frozen and named. How
channels go: `removal.py`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from pipeline.networks.checkpoint import tensors
from pipeline.pruning.labels import Labels, owner
from pipeline.pruning.norms import Statistics
from pipeline.pruning.removal import Coupling, Group, Slot
from pipeline.pruning.tracing import follow
from pipeline.pruning.trials import settle


def find_groups(network: nn.Module, example: torch.Tensor, norms: bool = False) -> Coupling:
    """Find the coupled channel groups of a network.

    norms: whether to offer groups that a normalisation takes its statistics over, which are not `exact`.

    `example` is an input [N, C, H, W] of the network; a small one is enough and its values don't count. The network is
    left as it is. Raises UserError if its forward can't be traced. Grouping by dependency is also the idea of DepGraph
    (Fang et al., CVPR 2023); this is a different algorithm, on labels of single channels.
    """
    labels = follow(network, example, norms)
    sites = [
        (tensor, dim, role, [labels.root(int(x)) for x in part]) for (tensor, dim), (part, role) in labels.sites.items()
    ]

    makers = [(owner(tensor), set(held)) for tensor, _, role, held in sites if role == "output"]
    makers += [(layer, {labels.root(int(x)) for x in part}) for layer, part in labels.makers]

    whole: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)  # layers -> why they stay whole
    fixed: set[int] = set()
    for part, reason in labels.freezes:
        frozen = {labels.root(int(label)) for label in np.unique(part)}
        fixed |= frozen
        layers = tuple(dict.fromkeys(layer for layer, outputs in makers if frozen & outputs))
        if reason and layers:
            whole[layers][reason] = None
    pictured, through = image_channels(labels)
    layers = tuple(dict.fromkeys(layer for layer, made in makers if pictured & made))
    if layers:
        fixed |= pictured
        named = f"{', '.join(through[:3])}{f' and {len(through) - 3} more' if len(through) > 3 else ''}"
        whole[layers][f"kernels that training doesn't change ({named}), through which they are the image's"] = None
    doubts: dict[int, str] = {}  # channels behind sizes that may be numbers: a trial decides
    for part, reason in labels.suspects:
        for label in np.unique(part):
            doubts.setdefault(labels.root(int(label)), reason)
    for root, reason in doubts.items():
        given = sorted({place for place, _, role, held in sites if role == "size" and root in held})
        if given:
            kind = "number" if labels.written.issuperset(given) else "attribute"
            which = f"{kind}s {', '.join(given)} count" if len(given) > 1 else f"{kind} {given[0]} counts"
            doubts[root] = f"{reason} as the {which} it"

    names = aliases(network)
    idle = unused(network, {alias for name in labels.used for alias in names[name]})
    if idle:
        whole[idle]["the traced forward, in which these layers don't run"] = None
    counted = {labels.root(int(label)) for part in labels.statistics.values() for label in np.unique(part)}
    candidates, members = {}, {}
    for group, roots in families(sites, fixed, names):
        if fixed & set(roots):
            continue
        if counted & set(roots):
            if labels.calls is None:
                whole[group.producers][
                    "a normalisation over channels whose statistics can't be told apart in a run"
                ] = None
                continue
            group = replace(group, exact=False)
            members[group.name] = roots
        candidates[group] = next((doubts[root] for root in roots if root in doubts), "")
    calls = [(name, part if part is None else np.vectorize(labels.root)(part)) for name, part in labels.calls or ()]
    accepted, refused = settle(network, example, candidates, idle, Statistics(tuple(calls), members))
    for group, reason in refused.items():
        whole[group.producers][reason] = None
    return Coupling(tuple(accepted), tuple(sentence(layers, list(reasons)) for layers, reasons in whole.items()))


def image_channels(labels: Labels) -> tuple[set[int], list[str]]:
    """The channels that reach the input or the output through kernels that training doesn't change, and those layers.

    They are colours, or fixed mixtures of them, such as behind EDSR's MeanShift: losing one is no smaller feature map.
    """

    def roots(part: np.ndarray) -> set[int]:
        return {labels.root(int(label)) for label in np.unique(part)}

    image = set().union(*map(roots, labels.image))

    sides = [(layer, roots(read), roots(made)) for layer, read, made in labels.carriers]
    found: set[int] = set()
    through: list[str] = []
    while reached := [side for side in sides if image & (side[1] | side[2])]:
        sides = [side for side in sides if side not in reached]
        for layer, read, made in reached:
            image |= read | made
            if layer:
                found |= read | made
                through.append(layer)
    return found, list(dict.fromkeys(through))


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
            for name in names.get(sites[number][0], sites[number][:1])  # an attribute has one name
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
