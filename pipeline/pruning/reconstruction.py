"""What the layers that read a channel can make up for when it goes, and how much the training loss then changes.

A layer that reads channels computes y = W x, with x a patch of its input and, where the layer has a bias, a constant 1.
When the channels R go, the weights of the kept ones K that come nearest to y, in the mean over training images, are

    W'_K = W_K + W_R A_RK A_KK^-1,    A = E[x x^T]

and what remains of row o's mean squared error is d_o = W_Ro (A_RR − A_RK A_KK^-1 A_KR) W_Ro^T. Means are part of it: x
holds the constant 1. The loss, the sum of absolute errors, then changes, in the mean square and to first order, by

    sum over o of S_o d_o,    S_o = sum over places of (∂loss/∂y_o)², for each output value

(errors of different rows and places taken as independent). That sum over the layers that read a channel is its
saliency: it can be compared between layers, which magnitudes can't, and it is next to nothing for channels that the
output hardly depends on. S takes one backward pass for each batch, from the signs of the output's errors. Signs drawn
by chance would give the change of the output itself; what they choose trains on to less (`docs/results.md`).

Sources: Optimal Brain Surgeon (Hassibi and Stork, 1993) for the error and its update; channel pruning by least squares
(He et al., ICCV 2017) for kernels; a Gauss-Newton matrix in two factors, inputs and outputs, is K-FAC (Martens and
Grosse, 2015), used for pruning by EigenDamage (Wang et al., ICML 2019). S is its output factor's diagonal, of the
empirical Fisher information.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.networks import duplicate
from pipeline.pruning.readers import Reader, View, by_row, matrix, patches, readable, set_matrices, views
from pipeline.pruning.removal import Coupling, Group, Removed, Slot

RIDGE = 1e-6  # of the mean of A's diagonal, added to it: inputs that hardly vary would make it singular
ROWS = 4_000  # patches of one layer and batch that are looked at; enough for A of some thousand rows


@dataclass(frozen=True)
class Moments:
    """Of one view of a reading layer: its inputs' second moments, and how far its outputs reach.

    second: E[x x^T], float64 [n, n]: n = channels × kernel places, and 1 for the bias, last.
    reach: S, float64 [rows]: the squared change of the loss, for each output value, for a mean squared change of a row
    by 1.
    """

    second: Tensor
    reach: Tensor
    view: View


Known = Mapping[str, Sequence[Moments]]  # of every layer: module name -> one for each of its views


def moments(
    network: nn.Module, coupling: Coupling, pairs: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, tuple[Moments, ...]]:
    """Of every layer that reads a removable channel and is `readable`; pairs: inputs [N, C, H, W], targets [N, ...].

    Layers are named by their modules. The network is left as it is; a copy is measured whose weights lie as those of a
    loaded one do, so that a pruning that goes on after a stop ends with the same bits.
    """
    network = duplicate(network).eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    names = dict.fromkeys(slot.module for group in coupling.groups for slot in _inputs(group))
    layers = {name: layer for name in names if readable(layer := network.get_submodule(name))}
    second: dict[tuple[str, View], Tensor] = {}
    reach: dict[tuple[str, View], Tensor] = {}
    rows: dict[tuple[str, View], int] = {}
    outputs, draws = 0, torch.Generator().manual_seed(0)

    def see(name: str, layer: Reader, image: Tensor, output: Tensor) -> None:
        for view in views(layer):
            read = patches(layer, view, image.detach().float(), output.shape[2:])
            if len(read) > ROWS:  # by chance: at even distances they could all be of one place of a PixelShuffle's cell
                read = read[torch.randperm(len(read), generator=draws)[:ROWS].to(read.device)]
            read = read.double()
            second[name, view] = second.get((name, view), 0) + read.T @ read
            rows[name, view] = rows.get((name, view), 0) + len(read)
        if output.requires_grad:
            output.register_hook(lambda slope: feel(name, layer, slope))

    def feel(name: str, layer: Reader, slope: Tensor) -> None:
        squares = slope.detach().double().square()
        for view in views(layer):
            reach[name, view] = reach.get((name, view), 0) + by_row(layer, view, squares)

    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: see(name, layer, inputs[0], output))
        for name, layer in layers.items()
    ]
    try:
        with torch.enable_grad():
            for batch, target in pairs:
                output = network(batch)
                loss = (output - target).abs().sum()
                torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad], allow_unused=True)
                outputs += output.numel()
    finally:
        for hook in hooks:
            hook.remove()
    silent = torch.zeros(1)
    return {
        name: tuple(
            Moments(second[name, view] / rows[name, view], reach.get((name, view), silent) / outputs, view)
            for view in views(layer)
        )
        for name, layer in layers.items()
        if all((name, view) in rows for view in views(layer))
    }


def compensated(network: nn.Module, coupling: Coupling, removed: Removed, known: Known) -> nn.Module:
    """A copy of the network whose readers make up for the removed channels as well as they can; none is removed yet.

    removed: group name -> channels that go. Layers that `known` lacks stay as they are.
    """
    copied = duplicate(network)
    gone: dict[str, set[int]] = {}
    for group in coupling.groups:
        for slot in _inputs(group):
            gone.setdefault(slot.module, set()).update(
                place for channel in removed.get(group.name, ()) for place in slot.index[channel]
            )
    for name, channels in gone.items():
        if name in known and channels:
            layer = _reader(copied, name)
            made = [_made_up_for(matrix(layer, one.view), one, sorted(channels)) for one in known[name]]
            if isinstance(layer, nn.ConvTranspose2d) and layer.bias is not None:
                _share_biases(layer, made, known[name], sorted(channels))
            set_matrices(layer, made)
    return copied


def _made_up_for(weights: Tensor, moment: Moments, channels: Sequence[int]) -> Tensor:
    """W with the share of the removed input channels in what the kept ones hold added to these."""
    away, kept = _columns(channels, moment.view.places), _kept(channels, moment)
    second = _ridged(moment.second)
    share = torch.linalg.solve(second[kept][:, kept], second[kept][:, away])  # [K, R]
    weights[:, kept] += weights[:, away] @ share.T
    return weights


def _share_biases(
    layer: nn.ConvTranspose2d, made: Sequence[Tensor], known: Sequence[Moments], channels: Sequence[int]
) -> None:
    """Change what `_made_up_for` made of each view, in place, to the best with one bias for all phases of a channel.

    Where a row's bias is moved by b, its other weights follow by b a / a_1 with a = A_KK^-1 e_1, the constant's column,
    and its mean squared error grows by b² / a_1: the best shared bias is the mean weighted by 1 / a_1. Phases that no
    kernel place reaches are the bias alone, so they ask for the one that is there, with weight 1.
    """
    assert layer.bias is not None
    bias = layer.bias.detach().double()
    bare = layer.stride[0] * layer.stride[1] - sum(len(moment.view.phases) for moment in known)
    asked, total, follow = bare * bias, torch.tensor(float(bare)).to(bias), []
    for weights, moment in zip(made, known, strict=True):
        kept = _kept(channels, moment)
        constant = torch.zeros(len(kept)).to(bias)
        constant[-1] = 1.0
        column = torch.linalg.solve(_ridged(moment.second)[kept][:, kept], constant)
        biases = weights[:, -1].view(len(bias), -1)
        asked, total = asked + biases.sum(dim=1) / column[-1], total + biases.shape[1] / column[-1]
        follow.append((kept, column / column[-1]))
    for weights, (kept, step) in zip(made, follow, strict=True):
        shared = (asked / total).repeat_interleave(len(weights) // len(bias))
        weights[:, kept] += (shared - weights[:, -1])[:, None] * step


def saliencies(
    network: nn.Module, coupling: Coupling, known: Known, limits: Mapping[str, int]
) -> dict[str, tuple[float, ...]]:
    """Group name -> [C_g] the squared change of the loss, for each output value, that each channel's removal adds.

    limits: group name -> the most channels that may go at once. So many are taken one after another, each the one that
    adds the smallest change, with the others brought up to date (Optimal Brain Surgeon): a channel that could stand in
    for one that went counts for more. Figures don't fall along that order. A group that `known` lacks a reader of isn't
    in the result.
    """
    result = {}
    for group in coupling.groups:
        readers = _inputs(group)
        if readers and all(slot.module in known for slot in readers):
            result[group.name] = _saliencies(network, group, readers, known, limits.get(group.name, 0))
    return result


def weakest(
    network: nn.Module, coupling: Coupling, known: Known, counts: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """So many channels of each group, those of the least saliency. counts: group name -> channels."""
    ordered = saliencies(network, coupling, known, counts)
    return {
        name: tuple(sorted(sorted(range(len(one)), key=one.__getitem__)[: counts[name]]))
        for name, one in ordered.items()
        if counts.get(name)
    }


def _saliencies(
    network: nn.Module, group: Group, readers: Sequence[Slot], known: Known, limit: int
) -> tuple[float, ...]:
    states = []
    for slot in readers:
        for moment in known[slot.module]:
            weights = matrix(_reader(network, slot.module), moment.view) * moment.reach.sqrt()[:, None]
            states.append([torch.linalg.inv(_ridged(moment.second)), weights, slot, moment.view.places])
    added = [0.0] * group.channels
    left, floor = list(range(group.channels)), 0.0
    for _ in range(min(limit, group.channels - 1) + 1):
        errors = torch.zeros(len(left), dtype=torch.float64, device=states[0][0].device)
        for inverse, weights, slot, places in states:
            columns = torch.tensor([_columns(slot.index[channel], places) for channel in left])  # [left, columns]
            blocks = torch.linalg.inv(inverse[columns[:, :, None], columns[:, None, :]])
            errors += torch.einsum("coi,cij,coj->c", *_both(weights, columns, blocks))
        for channel, error in zip(left, errors.tolist(), strict=True):
            added[channel] = max(error, floor)
        if len(left) == 1:
            break
        channel = left.pop(int(errors.argmin()))
        floor = added[channel]
        for state in states:
            inverse, weights, slot, places = state
            gone = _columns(slot.index[channel], places)
            step = torch.linalg.inv(inverse[gone][:, gone]) @ inverse[gone]
            state[1] = weights - weights[:, gone] @ step
            inverse.addmm_(inverse[:, gone], step, alpha=-1)
            inverse[gone, :] = inverse[:, gone] = state[1][:, gone] = 0.0
            inverse[gone, gone] = 1.0
    return tuple(added)


def _both(weights: Tensor, columns: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of each channel's columns, [left, out, columns], on both sides of its block."""
    own = weights[:, columns].permute(1, 0, 2)
    return own, blocks, own


def _inputs(group: Group) -> list[Slot]:
    """Where kernels read the group's channels."""
    return [slot for slot in group.slots if slot.role == "input" and slot.tensor.endswith("weight")]


def _reader(network: nn.Module, name: str) -> Reader:
    layer = network.get_submodule(name)
    assert readable(layer), name  # only such layers have moments
    return layer


def _columns(channels: Sequence[int], places: int) -> list[int]:
    """The numbers in x of some input channels."""
    return [channel * places + place for channel in channels for place in range(places)]


def _kept(channels: Sequence[int], moment: Moments) -> list[int]:
    """The numbers in x that stay when these input channels go."""
    away = set(_columns(channels, moment.view.places))
    return [column for column in range(len(moment.second)) if column not in away]


def _ridged(second: Tensor) -> Tensor:
    return second + RIDGE * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype, device=second.device)
