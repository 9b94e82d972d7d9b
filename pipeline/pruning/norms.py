"""Normalisations over channels: statistics that are taken over the channels that stay, once some go.

A layer norm, a group norm, a root mean square over channels, or a norm written out (`x.mean(1)`, `x.var(1)`) computes
something else when a channel goes, so a smaller network can't equal the masked one. What it must equal is the masked
network whose statistics leave the removed channels out. `over_kept` makes this reference of the whole network, without
cutting anything: while its forward runs, each statistic over channels is computed from the kept ones. Which call is
which operation of the trace is known from `calls`: the traced graph runs once, operation by operation.

Sources: Ba et al., Layer Normalization (2016); Wu and He, Group Normalization (ECCV 2018); Zhang and Sennrich, Root
Mean Square Layer Normalization (NeurIPS 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.cost import quiet
from pipeline.pruning.labels import Labels, describe, operation

STATISTICS = ("mean", "var", "std", "var_mean")  # of the trace; the ones that a norm written out is made of
CLOSED = " (prune.norms: true may open them)"  # ends the reason why channels stay, where that is off
RUN = (*STATISTICS, "native_layer_norm", "native_group_norm", "_fused_rms_norm")  # what these and norms run as

Call = tuple[str, np.ndarray | None]  # operation, labels of its input where it is a statistic over channels


@dataclass(frozen=True)
class Statistics:
    """All that a forward runs of `RUN`, in order, and which channels each statistic is over."""

    calls: tuple[Call, ...]
    roots: Mapping[str, Sequence[int]]  # name of a group that isn't exact -> the label of each of its channels


def takes(trace: Labels, node: Node, labels: np.ndarray, dims: Sequence[int]) -> np.ndarray | str:
    """Labels of a statistic over channels, which has none itself; otherwise words on why it isn't followed, maybe none.

    labels: of what it is taken from; dims: those that it is over.
    """
    across = [d for d in dims if labels.shape[d] > 1]
    if operation(node) not in STATISTICS or len(across) != 1 or labels.size != labels.shape[across[0]]:
        return ""
    if not trace.norms:
        return CLOSED
    trace.statistics[node] = labels
    return trace.new(*(1 if d in dims else size for d, size in enumerate(labels.shape)))


def mixes(trace: Labels, node: Node, args: dict[str, Any]) -> np.ndarray:
    """A normalisation that takes its statistics over channels: layer norm, group norm, root mean square.

    A group norm keeps its number of groups and groups of one size: channels in the same place of each go together.
    """
    labels = trace.get(args["input"])
    rank = labels.ndim
    grouped = operation(node) == "group_norm"
    dims = (1,) if grouped else tuple(range(rank - len(args["normalized_shape"]), rank))
    across = [d for d in range(rank) if labels.shape[d] > 1]
    if not grouped and not set(across) & set(dims):  # over height and width: each channel by itself
        return labels
    alone = len(across) == 1 and across[0] in dims
    if not trace.norms or not alone:
        reason = f"the normalisation {describe(node)}, which mixes channels"
        trace.freeze(labels, reason + (CLOSED if alone else ""))
        return labels
    flat = labels.reshape(-1)
    if grouped:
        rows = flat.reshape(args["num_groups"], -1)
        trace.unite(rows, rows[:1])
    for key in ("weight", "bias"):
        if args.get(key) is not None:
            trace.attach(args[key], across[0] - dims[0], flat, "channel")
    if not grouped and args.get("weight") in trace.owned:
        # F.layer_norm is given its shape: where the module of its weight holds this very shape, that follows.
        path = trace.owned[args["weight"]].rpartition(".")[0]
        for name, numbers in trace.attributes.items():
            if name.rpartition(".")[0] == path and numbers == tuple(args["normalized_shape"]):
                known, _ = trace.sites.setdefault((name, across[0] - dims[0]), (flat, "size"))
                trace.unite(known, flat)
    trace.statistics[node] = labels
    return labels


def calls(program: ExportedProgram, image: Tensor, statistics: Mapping[Node, np.ndarray]) -> tuple[Call, ...] | None:
    """What the traced forward runs of `RUN`. None if it can't be run, or a statistic doesn't run as one operation."""
    held = {**program.state_dict, **program.constants}
    noted = _Noting()
    try:
        inputs = [
            image.clone() if spec.kind == InputKind.USER_INPUT else held[str(spec.target)]
            for spec in program.graph_signature.input_specs
        ]
        with torch.no_grad(), quiet(), noted:
            _Steps(program.graph_module, noted).run(*inputs)
    except Exception:  # an operation may not run outside of its own module: then nothing is known
        return None
    ran = [node for _, node in noted.seen]
    if any(ran.count(node) != 1 for node in statistics):
        return None
    return tuple((name, statistics.get(node)) for name, node in noted.seen)


class _Noting(TorchDispatchMode):
    """Notes which operations of `RUN` run for which node of the traced graph."""

    def __init__(self) -> None:
        super().__init__()
        self.node: Node | None = None
        self.seen: list[tuple[str, Node]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if (name := _name(func)) in RUN and self.node is not None:
            self.seen.append((name, self.node))
        return func(*args, **(kwargs or {}))


class _Steps(Interpreter):
    def __init__(self, module: nn.Module, noted: _Noting) -> None:
        super().__init__(module)
        self.noted = noted

    def run_node(self, n: Node) -> Any:
        self.noted.node = n
        return super().run_node(n)


def over_kept(network: nn.Module, statistics: Statistics, removed: Mapping[str, Sequence[int]]) -> None:
    """Let every statistic over channels leave the removed ones out, in place.

    removed: group name -> channels. If the forward runs other statistics than the trace did, at another size of image,
    then nobody knows which channels they are over: the network gives an empty tensor, which no other output equals.
    """
    roots, calls = statistics.roots, statistics.calls
    gone = [roots[name][channel] for name, channels in removed.items() if name in roots for channel in channels]
    if not gone:
        return
    forward = network.forward

    def alike(image: Tensor) -> Tensor:
        with _Kept(calls, gone) as mode:
            made = forward(image)
        return made if mode.number == len(calls) and not mode.lost else image.new_empty(0)

    network.forward = alike


class _Kept(TorchDispatchMode):
    """Computes statistics over channels without those that went."""

    def __init__(self, calls: Sequence[Call], gone: Sequence[int]) -> None:
        super().__init__()
        self.calls, self.gone = calls, gone
        self.number, self.lost = 0, False  # calls so far; whether one was another than in the trace

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, kwargs = _name(func), kwargs or {}
        if name not in RUN or self.lost:
            return func(*args, **kwargs)
        expected, labels = self.calls[self.number] if self.number < len(self.calls) else ("", None)
        self.number += 1
        if name != expected:
            self.lost = True
            return func(*args, **kwargs)
        away = np.isin(labels, self.gone) if labels is not None else np.zeros(1, dtype=bool)
        if not away.any():
            return func(*args, **kwargs)
        dim = away.shape.index(away.size)
        if args[0].dim() != away.ndim or args[0].shape[dim] != away.size:
            self.lost = True
            return func(*args, **kwargs)
        stays = torch.from_numpy(~away.reshape(-1)).to(args[0].device)
        if name in STATISTICS:
            return func(args[0].index_select(dim, stays.nonzero()[:, 0]), *args[1:], **kwargs)
        return _normalised(name, args, stays.reshape(away.shape))


def _normalised(name: str, args: tuple, stays: Tensor) -> tuple[Tensor, ...]:
    """What a norm's operation gives of all channels, with the statistics of those that stay.

    stays: booleans of the image's rank. The operation's arguments and outputs are those that ATen documents.
    """
    dims: tuple[int, ...] = (2,)
    image, weight = args[0], args[1 if name == "native_group_norm" else 2]
    if name == "native_group_norm":
        bias, number, eps = args[2], args[6], args[7]
        kept = stays.expand(image.shape).reshape(len(image), number, -1)
        values = image.reshape(kept.shape)
        shape = (1, -1, *[1] * (image.dim() - 2))
        weight, bias = (one if one is None else one.reshape(shape) for one in (weight, bias))
    else:
        bias, eps = (args[3], args[4]) if name == "native_layer_norm" else (None, args[3])
        values, kept = image, stays.expand(image.shape)
        dims = tuple(range(image.dim() - len(args[1]), image.dim()))
    count = kept.sum(dims, keepdim=True)
    centred = name != "_fused_rms_norm"
    mean = torch.where(kept, values, 0).sum(dims, keepdim=True) / count if centred else torch.zeros_like(values[:1])
    spread = torch.where(kept, values - mean, 0).square().sum(dims, keepdim=True) / count
    scale = (spread + (torch.finfo(image.dtype).eps if eps is None else eps)).rsqrt()
    made = ((values - mean) * scale).reshape(image.shape)
    made = made if weight is None else made * weight
    made = made if bias is None else made + bias
    return (made, mean, scale) if centred else (made, scale)


def _name(func: Any) -> str:
    return func._schema.name.removeprefix("aten::")
