"""What the layers that read a channel can make up for when it goes: least squares on their inputs.

A layer that reads channels computes y = W x, with x a patch of its input and, where the layer has a bias, a constant 1.
When the channels R go, the weights of the kept ones K that come nearest to y, in the mean over training images, are

    W'_K = W_K + W_R A_RK A_KK^-1,    A = E[x x^T]

and what remains of the error is tr(W_R (A_RR − A_RK A_KK^-1 A_KR) W_R^T). So a removal starts from far less damage, and
the channels to remove can be chosen by what can't be made up for. Means are part of it: x holds the constant 1.

Sources: Optimal Brain Surgeon (Hassibi and Stork, 1993) for the error and its update; channel pruning by least squares
(He et al., ICCV 2017) for kernels. Over a group, the error of a channel is the sum over its readers of the share of
each reader's mean squared output; that sum is this project's choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks import duplicate
from pipeline.pruning.removal import Coupling, Group, Removed, Slot

Reader = nn.Conv2d | nn.ConvTranspose2d

RIDGE = 1e-6  # of the mean of A's diagonal, added to it: inputs that hardly vary would make it singular
ROWS = 20_000  # patches of one layer and batch that are looked at, evenly spread; enough for A of some thousand rows


@dataclass(frozen=True)
class Moments:
    """E[x x^T] of one reading layer, float64 [n, n]: n = channels × kernel places, and 1 for the bias, last."""

    second: Tensor
    places: int  # kernel places that each input channel has in x


def readable(layer: nn.Module) -> TypeGuard[Reader]:
    """Whether a layer's output is linear in patches of its input, as `moments` takes them."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and not isinstance(layer.padding, str)
    if isinstance(layer, nn.ConvTranspose2d):  # each output pixel comes from one input pixel
        plain = layer.kernel_size == layer.stride and layer.padding == (0, 0) and layer.output_padding == (0, 0)
        return plain and layer.groups == 1 and layer.dilation == (1, 1)
    return False


@torch.no_grad()
def moments(network: nn.Module, coupling: Coupling, batches: Iterable[Tensor]) -> dict[str, Moments]:
    """Of every layer that reads a removable channel and is `readable`: E[x x^T] over batches of inputs.

    Layers are named by their modules. The network is left in evaluation mode.
    """
    names = dict.fromkeys(slot.module for group in coupling.groups for slot in _inputs(group))
    layers = {name: layer for name in names if readable(layer := network.get_submodule(name))}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(layers, 0)

    def add(name: str, layer: Reader, image: Tensor) -> None:
        patches = _patches(layer, image.float())
        patches = patches[:: -(-len(patches) // ROWS)].double()
        sums[name] = sums.get(name, 0) + patches.T @ patches
        counts[name] += len(patches)

    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: add(name, layer, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        network.eval()
        for batch in batches:
            network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Moments(total / counts[name], _places(layers[name])) for name, total in sums.items()}


def compensated(network: nn.Module, coupling: Coupling, removed: Removed, known: Mapping[str, Moments]) -> nn.Module:
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
            layer, moment = _reader(copied, name), known[name]
            weights = _matrix(layer)
            away = _columns(sorted(channels), moment.places)
            kept = [column for column in range(weights.shape[1]) if column not in set(away)]
            second = _ridged(moment.second)
            share = torch.linalg.solve(second[kept][:, kept], second[kept][:, away])  # [K, R]
            weights[:, kept] += weights[:, away] @ share.T
            _set_matrix(layer, weights)
    return copied


def weakest(
    network: nn.Module, coupling: Coupling, known: Mapping[str, Moments], counts: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """The channels of each group whose removal can best be made up for: so many of each group, one after another.

    counts: group name -> channels to remove. Each step removes the channel that adds the smallest error and brings the
    others' errors up to date (Optimal Brain Surgeon). A group whose readers are unknown isn't in the result.
    """
    chosen = {}
    for group in coupling.groups:
        readers = [slot for slot in _inputs(group) if slot.module in known]
        number = counts.get(group.name, 0)
        if readers and number:
            chosen[group.name] = tuple(sorted(_order(network, group, readers, known, number)))
    return chosen


def _order(
    network: nn.Module, group: Group, readers: Sequence[Slot], known: Mapping[str, Moments], number: int
) -> list[int]:
    """The first `number` channels to go, weakest first."""
    states = []
    for slot in readers:
        moment, weights = known[slot.module], _matrix(_reader(network, slot.module))
        second = _ridged(moment.second)
        energy = float(torch.einsum("oi,ij,oj->", weights, second, weights))
        states.append([torch.linalg.inv(second), weights, energy, slot, moment.places])
    order: list[int] = []
    for _ in range(number):
        left = [channel for channel in range(group.channels) if channel not in order]
        errors = torch.zeros(len(left), dtype=torch.float64)
        for inverse, weights, energy, slot, places in states:
            columns = torch.tensor([_columns(slot.index[channel], places) for channel in left])  # [left, columns]
            blocks = torch.linalg.inv(inverse[columns[:, :, None], columns[:, None, :]])
            errors += torch.einsum("coi,cij,coj->c", *_both(weights, columns, blocks)) / max(energy, 1e-30)
        channel = left[int(errors.argmin())]
        order.append(channel)
        for state in states:
            inverse, weights, _, slot, places = state
            gone = _columns(slot.index[channel], places)
            step = torch.linalg.inv(inverse[gone][:, gone]) @ inverse[gone]
            state[1] = weights - weights[:, gone] @ step
            inverse = inverse - inverse[:, gone] @ step
            inverse[gone, :] = inverse[:, gone] = state[1][:, gone] = 0.0
            inverse[gone, gone] = 1.0
            state[0] = inverse
    return order


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


def _places(layer: Reader) -> int:
    return 1 if isinstance(layer, nn.ConvTranspose2d) else layer.kernel_size[0] * layer.kernel_size[1]


def _ridged(second: Tensor) -> Tensor:
    return second + RIDGE * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype, device=second.device)


def _patches(layer: Reader, image: Tensor) -> Tensor:
    """[patches, n] what each of a layer's outputs is made of, with a 1 behind it where there is a bias."""
    if isinstance(layer, nn.ConvTranspose2d):
        rows = image.flatten(2)
    else:
        if layer.padding_mode != "zeros":
            image = F.pad(image, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = layer.padding if layer.padding_mode == "zeros" and not isinstance(layer.padding, str) else 0
        rows = F.unfold(image, layer.kernel_size, layer.dilation, padding, layer.stride)
    rows = rows.transpose(1, 2).reshape(-1, rows.shape[1])
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if layer.bias is not None else rows


def _matrix(layer: Reader) -> Tensor:
    """float64 [rows, n] a layer's weights as y = W x has them, the bias last."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.ConvTranspose2d):
        rows = weight.permute(1, 2, 3, 0).reshape(-1, weight.shape[0])
        bias = None if layer.bias is None else layer.bias.detach().double().repeat_interleave(weight[0, 0].numel())
    else:
        rows, bias = weight.reshape(len(weight), -1), None if layer.bias is None else layer.bias.detach().double()
    return rows.clone() if bias is None else torch.cat([rows, bias[:, None]], dim=1)


@torch.no_grad()
def _set_matrix(layer: Reader, weights: Tensor) -> None:
    """Put them back. A transposed kernel's places share one bias: the mean of what they ask for."""
    if layer.bias is not None:
        bias, weights = weights[:, -1], weights[:, :-1]
        layer.bias.copy_(bias.view(len(layer.bias), -1).mean(dim=1))
    if isinstance(layer, nn.ConvTranspose2d):
        channels, (height, width) = layer.out_channels, layer.kernel_size
        weights = weights.reshape(channels, height, width, layer.in_channels).permute(3, 0, 1, 2)
    layer.weight.copy_(weights.reshape(layer.weight.shape))
