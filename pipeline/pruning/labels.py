"""Labels of the channels of a traced network: which ones go together, and where in the parameters they sit.

Convention. The labels of a graph node are an integer array with the node's rank. Along a dimension that is indexed by
channel it has the tensor's full size, elsewhere size 1: a feature map [N, C, H, W] has labels [1, C, 1, 1]. Labels that
can only be removed together are united in `Labels.parent` (union-find). Size 1 where the tensor is longer means that
one label covers the whole dimension, so an operation that gives a single label to everything stays safe wherever it
goes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node

Value = np.ndarray | list[np.ndarray]
Place = tuple[str, int]  # (attribute, number in it), such as ("block.widths", 1); 0 where it holds a single number
Size = tuple[tuple[Place, int], ...]  # a sum: attributes and their numbers, below 0 where one is taken away


class Labels:
    """Labels of one traced network and where they sit in its parameters and buffers."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.values: dict[Node, Value] = {}
        self.owned: dict[Node, str] = {}  # placeholder of a parameter or buffer -> its state_dict name
        self.buffers: set[Node] = set()  # the buffers of `owned`
        self.still: set[Node] = set()  # tensors that training doesn't change: buffers, constants, frozen parameters
        self.constants: set[Node] = set()  # tensors that belong to no module: they can't be made smaller
        self.used: set[str] = set()  # parameters that some operation reads
        self.makers: list[tuple[str, np.ndarray]] = []  # (layer, labels it makes) where its kernel is no parameter
        self.direct: set[str] = set()  # parameters of several dimensions that forward computes with by itself
        self.sites: dict[tuple[str, int], tuple[np.ndarray, str]] = {}  # (tensor, dim) -> (labels [size], role)
        self.freezes: list[tuple[np.ndarray, str]] = []  # (labels, reason); no reason = the network's input or output
        self.image: list[np.ndarray] = []  # labels of the network's input and output
        # (layer, labels it reads, labels it makes) where the kernel is `still`; ("", …) where there is no handler
        self.carriers: list[tuple[str, np.ndarray, np.ndarray]] = []
        self.norms = False  # whether channels may go that a statistic is taken over
        self.attributes: dict[str, tuple[int, ...]] = {}  # of modules, that may be sizes; networks/sizes.py
        self.written: set[str] = set()  # those of them that are numbers in a method; networks/literals.py
        self.statistics: dict[Node, np.ndarray] = {}  # operation that takes one -> labels of its input; norms.py
        self.calls: tuple[tuple[str, np.ndarray | None], ...] | None = None  # what a run takes them by; norms.calls
        self.suspects: list[tuple[np.ndarray, str]] = []  # (labels, reason): sizes that may not follow them
        # place -> (the labels that it counts, all of the dimension, operation)
        self.sized: dict[Place, tuple[np.ndarray, np.ndarray, Node]] = {}
        self.made_by: dict[int, Node] = {}  # number of a call in the forward -> the last operation that it ran
        self.shaped: list[tuple[Place, np.ndarray, Node]] = []  # (place, labels [its number, ...], reshape)
        self.summed: list[tuple[Place, np.ndarray, np.ndarray, Node]] = []  # what `size` takes, of a sum's attributes
        self.dealt: list[np.ndarray] = []  # [part, place in it]: channels that a transpose deals out in turn

    def new(self, *shape: int) -> np.ndarray:
        """Fresh labels, int64 array of this shape."""
        first = len(self.parent)
        self.parent.extend(range(first, first + math.prod(shape)))
        return np.arange(first, len(self.parent)).reshape(shape)

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def unite(self, left: np.ndarray, right: np.ndarray) -> None:
        """Unite two arrays of labels element by element (numpy's broadcasting)."""
        for a, b in zip(*(side.flat for side in np.broadcast_arrays(left, right)), strict=True):
            a, b = self.root(int(a)), self.root(int(b))
            self.parent[max(a, b)] = min(a, b)

    def freeze(self, labels: np.ndarray, reason: str = "") -> None:
        self.freezes.append((labels, reason))

    def suspect(self, labels: np.ndarray, node: Node) -> None:
        self.suspects.append((labels, f"the sizes in {describe(node)}, which don't follow a removal"))

    def size(self, place: Place, part: np.ndarray, whole: np.ndarray, node: Node) -> None:
        """Note that an attribute counts a part of a dimension's channels, so that it goes down with them.

        part, whole: labels [channels]. Layers that are divided by one attribute lose the same channels, and so keep
        equal sizes. Those whose sizes differ stay whole.
        """
        first, split, before = self.sized.setdefault(place, (part, whole, node))
        if len({len(whole), len(split)} - {len(part)}) > 1:
            layers = f"layers of {len(split)} channels ({describe(before)}) and of {len(whole)} ({describe(node)})"
            reason = f"the attribute {place[0]}, which gives a size in {layers}"
            self.freeze(first, reason)
            self.freeze(part, reason)
            return
        known, _ = self.sites.setdefault(place, (part, "size"))
        self.unite(known, part)
        if len(whole) == len(split):
            self.unite(split, whole)
        elif len(whole) > len(split):
            self.sized[place] = (part, whole, node)

    def shape(self) -> None:
        """Let attributes that reshapes take sizes from count what lies along their dimensions.

        Where each index holds one channel, the attribute counts these. Where each has channels of its own, such as the
        heads of an attention, those of one index go together, and it counts the heads. Where indices share channels,
        such as branches that are added up later, it counts none of them.
        """

        def roots(rows: np.ndarray) -> list[set[int]]:
            return [{self.root(int(label)) for label in np.unique(row)} for row in rows]

        def apart(rows: np.ndarray) -> bool:
            held = roots(rows)
            return sum(map(len, held)) == len(set().union(*held))

        waiting = self.shaped
        while waiting:
            ready = [entry for entry in waiting if max(map(len, roots(entry[1]))) == 1]
            ready = ready or next(([entry] for entry in waiting if apart(entry[1])), [])
            if not ready:
                return
            for place, rows, node in ready:
                self.unite(rows, rows[:, :1])
                self.size(place, rows[:, 0], rows[:, 0], node)
            waiting = [entry for entry in waiting if not any(entry is done for done in ready)]

    def add_up(self) -> None:
        """Let the attributes of sums count their parts, but for those that count channels by themselves too."""
        alone = set(self.sized)
        for place, part, whole, node in self.summed:
            if place not in alone:
                self.size(place, part, whole, node)

    def deal(self) -> None:
        """Let channels at one place of all parts go together where a view and a transpose shuffle them.

        Only where nothing else ties them: the number of parts is fixed, so one alone couldn't go.
        """
        for parts in self.dealt:
            if len({self.root(int(label)) for label in parts.flat}) == parts.size:
                self.unite(parts, parts[:1])

    def get(self, node: Node) -> np.ndarray:
        """Labels of a tensor, with the tensor's rank."""
        if node in self.owned or node in self.constants:
            return self.tensor(node, [size > 1 for size in shape_of(node)])
        value = self.values[node]
        assert isinstance(value, np.ndarray)
        rank = len(shape_of(node))
        if value.ndim > rank:  # one label for a tensor without dimensions, which an operation gave one
            return value.reshape((1,) * rank)
        return value.reshape((1,) * (rank - value.ndim) + value.shape)

    def along(self, node: Node, dim: int) -> np.ndarray:
        """Labels [size of dim] along one dimension; labels that differ along other dimensions are united."""
        shape = shape_of(node)
        flat = np.moveaxis(self.get(node), dim, 0)
        flat = flat.reshape(flat.shape[0], -1)
        if flat.shape[1] > 1:
            self.unite(flat, flat[:, :1])
        return np.broadcast_to(flat[:, 0], shape[dim])

    def tensor(self, node: Node, channel: Sequence[bool]) -> np.ndarray:
        """Labels of a parameter, buffer or constant; `channel` says which of its dimensions may be channels."""
        shape = shape_of(node)
        dims = [d for d, size in enumerate(shape) if size > 1 and channel[d]]
        if not dims:
            return self.new(*(1,) * len(shape))
        if len(dims) > 1 or node in self.constants:
            labels = self.new(*(1,) * len(shape))
            name = self.owned.get(node, node.name)
            self.direct.add(name)
            self.freeze(labels, f"the tensor {name}, which forward computes with directly")
            return labels
        labels = self.new(shape[dims[0]])
        self.attach(node, dims[0], labels, "channel")
        return labels.reshape([-1 if d == dims[0] else 1 for d in range(len(shape))])

    def attach(self, node: Node | None, dim: int, labels: np.ndarray, role: str) -> None:
        """Note that dimension `dim` of a parameter or buffer is indexed by these labels."""
        if node is None:
            return
        if node not in self.owned:
            source = node.name if node.op == "placeholder" else f"what {describe(node)} computes"
            self.freeze(labels, f"{source}, which a layer uses as a parameter")
            return
        site = (self.owned[node], dim)
        known, known_role = self.sites.setdefault(site, (labels, role))
        self.unite(known, labels)  # a layer that is called twice: the labels of both calls
        if known_role != role:
            self.freeze(labels, f"{site[0]}, which is shared as an {known_role} and as an {role} side")


def owner(tensor: str) -> str:
    """Name of the module that owns a tensor; for a parameter of the network itself, the parameter's name."""
    return tensor.rpartition(".")[0] or tensor


def role_of(trace: Labels, kernel: Node, node: Node, outputs: np.ndarray) -> str:
    """The role of a kernel's output side. One that training doesn't change has no importance; its layer names it."""
    if kernel in trace.owned and kernel not in trace.buffers:
        return "output"
    trace.makers.append((layer_of(trace, kernel, node), outputs))
    return "channel"


def layer_of(trace: Labels, kernel: Node, node: Node) -> str:
    """A name for a layer whose kernel is no parameter: its module, or that of what the kernel is made of."""
    modules = list(node.meta.get("nn_module_stack", {}).values())
    if modules and modules[-1][0]:
        return modules[-1][0]
    made_of = [kernel]
    for source in made_of:
        if source in trace.owned:
            return owner(trace.owned[source])
        made_of += [above for above in source.all_input_nodes if above not in made_of]
    return describe(node)


def operation(node: Node) -> str:
    name = getattr(getattr(node.target, "_schema", None), "name", str(node.target))
    return name.removeprefix("aten::").rstrip("_")


def arguments(node: Node) -> dict[str, Any]:
    """The node's arguments by the names in the operation's schema, defaults filled in."""
    if not hasattr(node.target, "_schema"):
        return dict(node.kwargs)
    schema = node.target._schema.arguments
    positional = {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    return {a.name: a.default_value for a in schema if a.has_default_value()} | positional | dict(node.kwargs)


def shape_of(node: Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("val"), "shape", ()))


def describe(node: Node) -> str:
    """The operation and the module that runs it, for a message."""
    modules = list(node.meta.get("nn_module_stack", {}).values())
    path, kind = modules[-1] if modules else ("", "")
    kind = (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
    return f"{operation(node)} in {path or 'the forward of'}{f' ({kind})' if path else ' ' + kind}"


def unknown(trace: Labels, node: Node, args: dict[str, Any], hint: str = "") -> np.ndarray:
    """Freeze what goes in and what comes out. One label covers all that comes out."""
    reason = f"the operation {describe(node)}, through which channels can't be followed{hint}"
    outputs = trace.new(1)
    for source in node.all_input_nodes:
        value = trace.values.get(source)
        for labels in value if isinstance(value, list) else [trace.get(source)]:
            trace.freeze(labels, reason)
            trace.carriers.append(("", labels, outputs))
    trace.freeze(outputs, reason)
    return outputs
