"""Layers that read channels, as matrices: y = W x, with x a patch of the input and a constant 1 where there is a bias.

A convolution is one such product. A transposed convolution is one for each *view*: the places of its output that read
the same patch of its input. With kernel = stride there is one, since every output pixel reads one input pixel. A kernel
of 4 at stride 2 has four: even and odd rows times even and odd columns each read 2 x 2 pixels of their own.

Source: the phases of a transposed convolution are those of a polyphase filter (Vaidyanathan, 1990).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reader = nn.Conv2d | nn.ConvTranspose2d


@dataclass(frozen=True)
class View:
    """The outputs of a reader that read the same patch, `places` pixels of each input channel.

    Of a transposed convolution: phases (row, column of the output modulo stride), the patch's pixels from where the
    phase lies (offsets, input pixels), and the kernel's place for each phase and pixel (taps).
    """

    places: int
    phases: tuple[tuple[int, int], ...] = ()
    offsets: tuple[tuple[int, int], ...] = ()
    taps: tuple[tuple[tuple[int, int], ...], ...] = ()


def readable(layer: nn.Module) -> TypeGuard[Reader]:
    """Whether a layer's outputs are linear in patches of its input, as this module takes them."""
    return isinstance(layer, Reader) and layer.groups == 1


def views(layer: Reader) -> tuple[View, ...]:
    """All views of a layer. Output places that no kernel place reaches aren't among them."""
    if isinstance(layer, nn.Conv2d):
        return (View(layer.kernel_size[0] * layer.kernel_size[1]),)
    high, wide = (_phases(layer, axis) for axis in (0, 1))
    return tuple(
        View(
            places=len(rows) * len(columns),
            phases=tuple((p, q) for p, _ in down for q, _ in along),
            offsets=tuple((row, column) for row in rows for column in columns),
            taps=tuple(tuple((i, j) for i in up for j in left) for _, up in down for _, left in along),
        )
        for rows, down in high.items()
        for columns, along in wide.items()
    )


def _phases(layer: nn.ConvTranspose2d, axis: int) -> dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]]:
    """Along one axis: offsets of the input pixels -> the phases that read them, each with its kernel places.

    Output place stride * m + phase reads input place m + offset by kernel place k, where
    stride * offset = phase + padding - dilation * k.
    """
    stride, padding, dilation = layer.stride[axis], layer.padding[axis], layer.dilation[axis]
    assert isinstance(padding, int)
    found: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for phase in range(stride):
        reach = [(phase + padding - dilation * k, k) for k in range(layer.kernel_size[axis])]
        taps = [(distance // stride, k) for distance, k in reach if distance % stride == 0]
        if taps:
            offsets, places = zip(*taps, strict=True)
            found.setdefault(offsets, []).append((phase, places))
    return found


def patches(layer: Reader, view: View, image: Tensor, output: Sequence[int]) -> Tensor:
    """[patches, n] what each of a view's outputs is made of, with a 1 behind it where there is a bias.

    image: the layer's input, [N, C, H, W]; output: its output's height and width.
    """
    if isinstance(layer, nn.ConvTranspose2d):
        rows = _shifted(layer, view, image, output)
    else:
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            image = F.pad(image, layer._reversed_padding_repeated_twice, mode=mode)
            padding: tuple[int, ...] = (0, 0)
        else:
            padding = layer.padding
        rows = F.unfold(image, layer.kernel_size, layer.dilation, padding, layer.stride)
    rows = rows.transpose(1, 2).reshape(-1, rows.shape[1])
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if layer.bias is not None else rows


def _shifted(layer: nn.ConvTranspose2d, view: View, image: Tensor, output: Sequence[int]) -> Tensor:
    """[N, C * places, outputs of one phase] the input's pixels at the view's offsets; 0 beyond the borders."""
    shape = [min(-(-(output[axis] - phase[axis]) // layer.stride[axis]) for phase in view.phases) for axis in (0, 1)]
    before = [max(0, -min(offset[axis] for offset in view.offsets)) for axis in (0, 1)]
    after = [
        max(0, max(offset[axis] for offset in view.offsets) + shape[axis] - image.shape[axis + 2]) for axis in (0, 1)
    ]
    wide = F.pad(image, (before[1], after[1], before[0], after[0]))
    pixels = [
        wide[:, :, before[0] + y : before[0] + y + shape[0], before[1] + x : before[1] + x + shape[1]]
        for y, x in view.offsets
    ]
    return torch.stack(pixels, dim=2).flatten(1, 2).flatten(2)


def by_row(layer: Reader, view: View, output: Tensor) -> Tensor:
    """[rows] the sum of an output-shaped tensor over images and places, by the rows of `matrix`."""
    if isinstance(layer, nn.Conv2d):
        return output.sum(dim=(0, 2, 3))
    (down, along) = layer.stride
    return torch.stack([output[:, :, p::down, q::along].sum(dim=(0, 2, 3)) for p, q in view.phases], dim=1).flatten()


def matrix(layer: Reader, view: View) -> Tensor:
    """float64 [rows, n] a layer's weights as y = W x has them, the bias last."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.ConvTranspose2d):
        rows = weight[:, :, *_places(view)].permute(1, 2, 0, 3)  # from [in, out, phases, places]
        rows = rows.reshape(layer.out_channels * len(view.phases), -1)
    else:
        rows = weight.reshape(len(weight), -1)
    if layer.bias is None:
        return rows.clone()
    bias = layer.bias.detach().double().repeat_interleave(len(rows) // len(layer.bias))
    return torch.cat([rows, bias[:, None]], dim=1)


@torch.no_grad()
def set_matrices(layer: Reader, matrices: Sequence[Tensor]) -> None:
    """Put the matrices of all views back. The outputs of one channel share a bias: the mean of what they hold."""
    biases = []
    for view, weights in zip(views(layer), matrices, strict=True):
        if layer.bias is not None:
            biases.append(weights[:, -1].view(len(layer.bias), -1))
            weights = weights[:, :-1]
        if isinstance(layer, nn.ConvTranspose2d):
            rows = weights.view(layer.out_channels, len(view.phases), layer.in_channels, view.places)
            layer.weight[:, :, *_places(view)] = rows.permute(2, 0, 1, 3).to(layer.weight)
        else:
            layer.weight.copy_(weights.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(torch.cat(biases, dim=1).mean(dim=1))


def _places(view: View) -> tuple[Tensor, Tensor]:
    """[phases, places] rows and columns of the kernel."""
    taps = torch.tensor(view.taps)
    return taps[..., 0], taps[..., 1]
