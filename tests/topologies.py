"""Small networks in the shapes that restoration papers use, and a builder of random ones, for the coupling tests.

All take an image [N, 3, H, W] with even sides of 8 pixels or more. Widths are small and differ where they may.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class Residual(nn.Module):
    """x + body(x)"""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class SuperResolution(nn.Module):
    """EDSR's frame: shifted mean, head, body, long skip, PixelShuffle, tail. SRResNet's and RCAN's blocks fit in."""

    def __init__(self, width: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.head = conv(3, width)
        self.blocks = nn.ModuleList(blocks)
        self.end = conv(width, width)
        self.up = nn.Sequential(conv(width, 4 * width), nn.PixelShuffle(2))
        self.tail = conv(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.head(x - self.mean)
        for block in self.blocks:
            x = block(x)
        return self.tail(self.up(self.end(x) + first)) + self.mean


class UNet(nn.Module):
    """Strided pooling, transposed convolutions without bias, concatenated skips, any height and width."""

    def __init__(self, widths: Sequence[int] = (4, 6, 8)) -> None:
        super().__init__()
        self.down = nn.ModuleList(conv(i, o) for i, o in zip((3, *widths), widths, strict=False))
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2, bias=False) for i, o in pairs)
        self.merge = nn.ModuleList(conv(2 * o, o) for _, o in pairs)
        self.last = conv(widths[0], 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, layer in enumerate(self.down):
            x = F.leaky_relu(layer(x if level == 0 else F.max_pool2d(x, 2, ceil_mode=True)), 0.2)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = F.leaky_relu(merge(torch.cat([up(x)[:, :, : skip.shape[2], : skip.shape[3]], skip], 1)), 0.2)
        return F.pixel_shuffle(self.last(x), 2)


class ChannelAttention(nn.Module):
    """RCAN's, with 1x1 convolutions, or the squeeze-and-excitation form with linear layers."""

    def __init__(self, width: int, hidden: int, form: str = "conv") -> None:
        super().__init__()
        layer = nn.Linear if form == "linear" else lambda i, o: nn.Conv2d(i, o, 1)
        self.gate = nn.Sequential(layer(width, hidden), nn.ReLU(inplace=True), layer(hidden, width), nn.Sigmoid())
        self.linear = form == "linear"

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            return x * self.gate(x.mean(dim=(2, 3))).view(x.shape[0], -1, 1, 1)
        return x * self.gate(F.adaptive_avg_pool2d(x, 1))


class Dense(nn.Module):
    """RDN's block: every layer reads all before it."""

    def __init__(self, width: int, growth: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        total = width
        for extra in growth:
            self.layers.append(conv(total, extra))
            total += extra
        self.fuse = conv(total, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(F.relu(layer(torch.cat(features, 1))))
        return x + self.fuse(torch.cat(features, 1))


def in_halves(made: Tensor, form: str) -> tuple[Tensor, ...]:
    """By numbers of a function that belongs to no module."""
    return torch.split(made, [4, 4], 1) if form == "outside" else (made[:, :4], made[:, 4:])


class Distill(nn.Module):
    """IMDN's block: a part is put aside, the rest goes on. The split is by chunk, by a derived size or by numbers."""

    def __init__(self, width: int, split: str) -> None:
        super().__init__()
        self.first, self.second = conv(width, 8), conv(4, 4)
        self.fuse = conv(8, width, 1)
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x)
        if self.split == "chunk":
            aside, rest = made.chunk(2, 1)
        elif self.split == "numbers":
            aside, rest = torch.split(made, [4, 4], 1)
        elif self.split == "slice":
            aside, rest = made[:, :4], made[:, 4:]
        elif self.split.startswith("outside"):
            aside, rest = in_halves(made, self.split)
        else:
            half = made.shape[1] // 2
            aside, rest = made[:, :half], made[:, half:]
        return x + self.fuse(torch.cat([aside, self.second(rest)], 1))


class LayerNorm2d(nn.Module):
    """Normalises over channels, written out as NAFNet has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight.view(1, -1, 1, 1) * scaled + self.bias.view(1, -1, 1, 1)


class Gated(nn.Module):
    """NAFNet's block without its norm: 1x1, depthwise, x1 * x2, attention, a learned scale that starts at 0."""

    def __init__(self, width: int, inner: int, gate: str = "chunk") -> None:
        super().__init__()
        self.expand, self.depth = conv(width, 2 * inner, 1), conv(2 * inner, 2 * inner, groups=2 * inner)
        self.attention, self.project = conv(inner, inner, 1), conv(inner, width, 1)
        self.beta = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        half = y.shape[1] // 2
        left, right = y.chunk(2, 1) if self.gate == "chunk" else torch.split(y, half, 1)
        y = left * right
        y = y * self.attention(F.adaptive_avg_pool2d(y, 1))
        return x + self.project(y) * self.beta


class SpatialAttention(nn.Module):
    """One map for all channels, from one that is broadcast."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = conv(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.map(x))


class Twice(nn.Module):
    """One convolution that is called twice, between two others."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.enter, self.shared, self.leave = conv(width, inner), conv(inner, inner), conv(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(F.silu(self.shared(F.silu(self.shared(F.silu(self.enter(x)))))))


class Tied(nn.Module):
    """Two layers that own the same kernel under two names."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.enter, self.first, self.second, self.leave = (
            conv(width, inner),
            conv(inner, inner),
            conv(inner, inner),
            conv(inner, width),
        )
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(F.gelu(self.second(F.gelu(self.first(F.gelu(self.enter(x)))))))


class Unshuffled(nn.Module):
    """Down by PixelUnshuffle, back up by a transposed convolution."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.thin, self.low = conv(width, inner), conv(4 * inner, 6)
        self.up = nn.ConvTranspose2d(6, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(torch.tanh(self.low(F.pixel_unshuffle(self.thin(x), 2))))


class Resized(nn.Module):
    """Padding, cropping, pooling and interpolation of H and W."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(width, inner, 3), conv(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(F.pad(x, (2, 2, 2, 2), mode="reflect"))[:, :, 1:-1, 1:-1]
        y = F.interpolate(F.avg_pool2d(y, 2), size=x.shape[2:], mode="bilinear").clamp(-1, 1)
        return x + F.dropout(self.leave(y), 0.5, self.training)


class Attention(nn.Module):
    """Between channels, in heads (Restormer; Zamir et al., CVPR 2022), or between pixels, in one of three forms."""

    def __init__(self, width: int, form: str, mask: bool = False) -> None:
        super().__init__()
        self.heads, self.form, self.mask = 3, form, mask
        self.qkv, self.project = conv(width, 36, 1), conv(12, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (part.reshape(b, self.heads, -1, h * w) for part in self.qkv(x).chunk(3, 1))
        if self.form == "matmul":
            made = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        elif self.form == "einsum":
            made = torch.einsum("bhij,bhjn->bhin", torch.einsum("bhin,bhjn->bhij", q, k).softmax(-1), v)
        else:
            q, k, v = (part.transpose(-2, -1) for part in (q, k, v))
            before = torch.ones(h * w, h * w, dtype=torch.bool).tril() if self.mask else None
            made = F.scaled_dot_product_attention(q, k, v, before).transpose(-2, -1)
        return x + self.project(made.reshape(b, -1, h, w))


class Scaled(nn.Module):
    """Channels scaled by an einsum: with a parameter, then with the channels' own means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw, nc -> nchw", torch.einsum("nchw,c->nchw", x, self.scale), x.mean((2, 3)))


class Shuffled(nn.Module):
    """ShuffleNet's exchange between three conv groups (Zhang et al., CVPR 2018): by torch's operation or by a view."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "operation":
            return F.channel_shuffle(x, 3)
        n, c, h, w = x.shape
        parts = x.view(n, 3, c // 3, h, w)
        return (parts.transpose(1, 2) if self.form == "transpose" else parts.permute(0, 2, 1, 3, 4)).reshape(n, c, h, w)


class Picked(nn.Module):
    """Pixels in another order, by a list, by places computed for H and W, and by a buffer along one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([1, 0, 3, 2]))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[2] - 1, -1, -1, device=x.device)
        turned = x.index_select(3, torch.arange(x.shape[3], device=x.device).flip(0))[:, :, rows]
        corner = x[:, :, [[0, 1], [1, 0]], [0, 1]] + x[:, :, self.order][:, :, :2, :2]
        return x + turned + F.interpolate(corner, size=x.shape[2:])


class Frame(nn.Module):
    """First convolution, one part, last convolution."""

    def __init__(self, width: int, part: nn.Module) -> None:
        super().__init__()
        self.enter, self.part, self.leave = conv(3, width), part, conv(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.part(self.enter(x)))


def residual(width: int, inner: int) -> nn.Module:
    return Residual(conv(width, inner), nn.ReLU(), conv(inner, width))


def edsr() -> nn.Module:
    return SuperResolution(6, [residual(6, 5) for _ in range(3)])


def srresnet() -> nn.Module:
    def block() -> nn.Module:
        return Residual(
            conv(6, 5, bias=False),
            nn.BatchNorm2d(5),
            nn.PReLU(5),
            conv(5, 6, bias=False),
            nn.BatchNorm2d(6),
            nn.PReLU(),
        )

    return SuperResolution(6, [block(), block()])


def rcan(form: str = "conv") -> nn.Module:
    return SuperResolution(
        6, [Residual(conv(6, 5), nn.ReLU(), conv(5, 6), ChannelAttention(6, 3, form)) for _ in range(2)]
    )


class RDN(nn.Module):
    """Zhang et al. (CVPR 2018): two shallow layers, dense blocks whose outputs are fused all together, a long skip."""

    def __init__(self, width: int, growth: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.shallow, self.head = conv(3, width), conv(width, width)
        self.blocks = nn.ModuleList(Dense(width, growth) for _ in range(blocks))
        self.fuse = nn.Sequential(conv(blocks * width, width, 1), conv(width, width))
        self.tail = nn.Sequential(conv(width, 4 * width), nn.PixelShuffle(2), conv(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.shallow(x)
        x, made = self.head(shallow), []
        for block in self.blocks:
            x = block(x)
            made.append(x)
        return self.tail(self.fuse(torch.cat(made, 1)) + shallow)


class Contrast(nn.Module):
    """IMDN's channel attention: standard deviation plus mean of each channel, then two 1x1 convolutions."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(True), nn.Conv2d(hidden, width, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        mean = x.sum(3, keepdim=True).sum(2, keepdim=True) / (x.size(2) * x.size(3))
        spread = (x - mean).pow(2).mean(dim=(2, 3), keepdim=True).pow(0.5)
        return x * self.gate(spread + mean)


class Distillation(nn.Module):
    """IMDN's block: of each layer a part is put aside, the rest goes on; all that was put aside is fused."""

    def __init__(self, width: int, split: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(inputs, 8) for inputs in (width, 4, 4))
        self.last, self.fuse = conv(4, 4), nn.Sequential(conv(16, width, 1), Contrast(width, 2))
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        aside, rest = [], x
        for layer in self.layers:
            made = F.leaky_relu(layer(rest), 0.05)
            part, rest = made.chunk(2, 1) if self.split == "chunk" else torch.split(made, (4, 4), 1)
            aside.append(part)
        return x + self.fuse(torch.cat([*aside, self.last(rest)], 1))


def rdn() -> nn.Module:
    return RDN(4, (2, 3), 2)


def imdn(split: str = "chunk") -> nn.Module:
    """Hui et al. (ACM MM 2019). The published split is by numbers; by chunk, its halves go in pairs."""
    return SuperResolution(6, [Distillation(6, split) for _ in range(2)])


def mobilenet() -> nn.Module:
    """Separable convolutions; the second depthwise one makes two channels of each."""
    separable = nn.Sequential(
        conv(6, 6, groups=6),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        conv(6, 8, 1),
        nn.Hardswish(),
        conv(8, 16, groups=8),
        conv(16, 6, 1),
    )
    return Frame(6, separable)


def grouped() -> nn.Module:
    """Grouped convolutions, plain and transposed, of two and three channels to a conv group."""
    return Frame(
        12,
        nn.Sequential(
            conv(12, 8, groups=4), nn.ReLU(), conv(8, 12, 1), nn.ConvTranspose2d(12, 8, 2, 2, groups=4), conv(8, 12, 1)
        ),
    )


PARTS = (
    lambda rng, width: residual(width, rng.randint(2, 6)),
    lambda rng, width: Residual(
        conv(width, 4), nn.BatchNorm2d(4), nn.PReLU(4), conv(4, width), nn.InstanceNorm2d(width, affine=True)
    ),
    lambda rng, width: ChannelAttention(width, rng.randint(2, 4), rng.choice(("conv", "linear"))),
    lambda rng, width: Dense(width, [rng.randint(2, 4) for _ in range(rng.randint(1, 3))]),
    lambda rng, width: Distill(width, rng.choice(("chunk", "numbers", "slice", "derived"))),
    lambda rng, width: Gated(width, rng.randint(2, 4), rng.choice(("chunk", "derived"))),
    lambda rng, width: nn.Sequential(conv(width, width, groups=width), nn.Mish(), conv(width, width, 1)),
    lambda rng, width: nn.Sequential(conv(width, width, groups=width // 2), nn.ELU()),
    lambda rng, width: SpatialAttention(width),
    lambda rng, width: Twice(width, rng.randint(2, 4)),
    lambda rng, width: Tied(width, rng.randint(2, 4)),
    lambda rng, width: Unshuffled(width, rng.randint(2, 3)),
    lambda rng, width: Resized(width, rng.randint(2, 4)),
    lambda rng, width: Residual(LayerNorm2d(width), conv(width, 3), nn.Softplus(), conv(3, width)),
)


def random_network(seed: int) -> nn.Module:
    """A network of two to five random parts, with random parameters and statistics; the same for the same seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    width = 2 * rng.randint(2, 4)
    parts = [rng.choice(PARTS)(rng, width) for _ in range(rng.randint(2, 5))]
    frame = SuperResolution(width, parts) if rng.random() < 0.5 else Frame(width, nn.Sequential(*parts))
    return unsettle(frame)


def unsettle(network: nn.Module) -> nn.Module:
    """Give norms, scales and statistics values that a mistake can't hide behind; evaluation mode."""
    for name, tensor in network.state_dict().items():
        if tensor.dim() < 2 or "beta" in name or tensor.shape[0] == 1:
            tensor.copy_(torch.rand_like(tensor, dtype=torch.float32) + 0.5)
    return network.eval()
