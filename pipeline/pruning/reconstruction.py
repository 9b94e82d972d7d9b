"""What the layers that read a channel can make up for when it goes, and how much the network's output then changes.

A layer that reads channels computes y = W x, with x a patch of its input and, where the layer has a bias, a constant 1.
When the channels R go, the weights of the kept ones K that come nearest to y, in the mean over training images, are

    W'_K = W_K + W_R A_RK A_KK^-1,    A = E[x x^T]

and what remains of row o's mean squared error is d_o = W_Ro (A_RR − A_RK A_KK^-1 A_KR) W_Ro^T. Means are part of it: x
holds the constant 1. The network's output then changes, in the mean square and as far as the network is linear, by

    sum over o of S_o d_o,    S_o = sum over places of (∂output/∂y_o)², for each output value

(errors of different rows and places taken as independent). That sum over the layers that read a channel is its
saliency: it can be compared between layers, which magnitudes can't, and it is next to nothing for channels that the
output hardly depends on. S is estimated with one backward pass from random signs for each batch.

Sources: Optimal Brain Surgeon (Hassibi and Stork, 1993) for the error and its update; channel pruning by least squares
(He et al., ICCV 2017) for kernels; a Gauss-Newton matrix in two factors, inputs and outputs, is K-FAC (Martens and
Grosse, 2015), used for pruning by EigenDamage (Wang et al., ICML 2019). S is its output factor's diagonal.
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
ROWS = 4_000  # patches of one layer and batch that are looked at; enough for A of some thousand rows


@dataclass(frozen=True)
class Moments:
    """Of one reading layer: its inputs' second moments, and how far its outputs reach.

    second: E[x x^T], float64 [n, n]: n = channels × kernel places, and 1 for the bias, last.
    reach: S, float64 [rows]: the mean squared change of the network's output for a mean squared change of a row by 1.
    """

    second: Tensor
    reach: Tensor
    places: int  # kernel places that each input channel has in x


def readable(layer: nn.Module) -> TypeGuard[Reader]:
    """Whether a layer's output is linear in patches of its input, as `moments` takes them."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and not isinstance(layer.padding, str)
    if isinstance(layer, nn.ConvTranspose2d):  # each output pixel comes from one input pixel
        plain = layer.kernel_size == layer.stride and layer.padding == (0, 0) and layer.output_padding == (0, 0)
        return plain and layer.groups == 1 and layer.dilation == (1, 1)
    return False


def moments(network: nn.Module, coupling: Coupling, batches: Iterable[Tensor]) -> dict[str, Moments]:
    """Of every layer that reads a removable channel and is `readable`, over batches of inputs [N, C, H, W].

    Layers are named by their modules. The network is left as it is; a copy is measured whose weights lie as those of a
    loaded one do, so that a pruning that goes on after a stop ends with the same bits.
    """
    network = duplicate(network).eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    names = dict.fromkeys(slot.module for group in coupling.groups for slot in _inputs(group))
    layers = {name: layer for name in names if readable(layer := network.get_submodule(name))}
    second: dict[str, Tensor] = {}
    reach: dict[str, Tensor] = {}
    rows: dict[str, int] = dict.fromkeys(layers, 0)
    outputs, draws = 0, torch.Generator().manual_seed(0)

    def see(name: str, layer: Reader, image: Tensor, output: Tensor) -> None:
        patches = _patches(layer, image.detach().float())
        if len(patches) > ROWS:  # by chance: at even distances they could all be of one place of a PixelShuffle's cell
            patches = patches[torch.randperm(len(patches), generator=draws)[:ROWS].to(patches.device)]
        patches = patches.double()
        second[name] = second.get(name, 0) + patches.T @ patches
        rows[name] += len(patches)
        if output.requires_grad:
            output.register_hook(lambda slope: feel(name, layer, slope))

    def feel(name: str, layer: Reader, slope: Tensor) -> None:
        reach[name] = reach.get(name, 0) + _by_row(layer, slope.detach().double().square())

    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: see(name, layer, inputs[0], output))
        for name, layer in layers.items()
    ]
    try:
        with torch.enable_grad():
            for batch in batches:
                output = network(batch)
                sign = torch.randint(0, 2, output.shape, generator=draws).to(output) * 2 - 1
                torch.autograd.grad(
                    output, [p for p in network.parameters() if p.requires_grad], sign, allow_unused=True
                )
                outputs += output.numel()
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: Moments(total / rows[name], reach.get(name, torch.zeros(1)) / outputs, _places(layers[name]))
        for name, total in second.items()
    }


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


def saliencies(
    network: nn.Module, coupling: Coupling, known: Mapping[str, Moments], limits: Mapping[str, int]
) -> dict[str, tuple[float, ...]]:
    """Group name -> [C_g] the mean squared change of the network's output that each channel's removal adds.

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
    network: nn.Module, coupling: Coupling, known: Mapping[str, Moments], counts: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """So many channels of each group, those of the least saliency. counts: group name -> channels."""
    ordered = saliencies(network, coupling, known, counts)
    return {
        name: tuple(sorted(sorted(range(len(one)), key=one.__getitem__)[: counts[name]]))
        for name, one in ordered.items()
        if counts.get(name)
    }


def _saliencies(
    network: nn.Module, group: Group, readers: Sequence[Slot], known: Mapping[str, Moments], limit: int
) -> tuple[float, ...]:
    states = []
    for slot in readers:
        moment = known[slot.module]
        weights = _matrix(_reader(network, slot.module)) * moment.reach.sqrt()[:, None]
        states.append([torch.linalg.inv(_ridged(moment.second)), weights, slot, moment.places])
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


def _by_row(layer: Reader, output: Tensor) -> Tensor:
    """[rows] the sum of an output-shaped tensor over images and places, by the rows of `_matrix`."""
    if isinstance(layer, nn.ConvTranspose2d):
        (high, wide), (images, channels, height, width) = layer.kernel_size, output.shape
        return output.view(images, channels, height // high, high, width // wide, wide).sum(dim=(0, 2, 4)).flatten()
    return output.sum(dim=(0, 2, 3))


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
