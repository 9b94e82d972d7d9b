"""Odd but plausible forwards: pruned equals masked, or what stays is named, or one clear sentence; never a crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pruning_runs import A, run
from removals import EXAMPLE, assert_equals_mask, check, random_removal
from topologies import conv, unsettle
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pipeline import config, cost, networks, stores
from pipeline.errors import UserError
from pipeline.networks import checkpoint
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.importance import group_states, reference_magnitudes
from pipeline.pruning.prune import Setup
from pipeline.pruning.removal import Coupling, kept_indices, remove
from pipeline.tracking.run import Run
from pipeline.training.loop import fit


class Odd(nn.Module):
    """A forward given as a function of the module and the image, and the parts that it uses."""

    def __init__(self, way: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.way = way
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def three(way: Callable[[Any, Tensor], Any], middle: int = 6, **parts: Any) -> Odd:
    """first: 3 -> 6, second: middle -> 5, last: 5 -> 3."""
    return Odd(way, **({"first": conv(3, 6), "second": conv(middle, 5), "last": conv(5, 3)} | parts))


def loops_and_ifs() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        for number, layer in enumerate(self.layers):
            y = y + layer(y).relu_() if number % 2 == 0 else layer(y).clamp_(min=0)
        return self.last(self.second(y)) + x

    return three(way, layers=nn.ModuleList(conv(6, 6) for _ in range(4)))


def input_joins_features() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        y = self.second(torch.cat([x, self.first(x)], 1))
        up = F.interpolate(self.last(torch.cat([y, x], 1)), scale_factor=2, mode="nearest")
        return up + F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)

    return three(way, middle=9, last=conv(8, 3))


def unshuffled_input() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        return F.pixel_shuffle(self.last(F.relu(self.second(self.first(x)))), 2)

    return three(way, first=conv(12, 6), last=conv(5, 12))


def dilated_branches() -> nn.Module:
    branches = nn.ModuleList(nn.Conv2d(6, 4, 3, padding=d, dilation=d) for d in (1, 2, 3))
    return three(
        lambda self, x: self.last(self.second(torch.cat([b(self.first(x)) for b in self.branches], 1))),
        middle=12,
        branches=branches,
    )


def squeeze_and_excite() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        n, c, _, _ = y.size()
        gate = self.gate(F.adaptive_avg_pool2d(y, 1).view(n, c)).view(n, c, 1, 1)
        return self.last(self.second(y * gate.expand_as(y)))

    return three(way, gate=nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 6), nn.Sigmoid()))


def loose_scales() -> nn.Module:
    """Parameters for each channel in three shapes, and a weight for each of two branches, picked by a number."""

    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x) * self.a.view(1, -1, 1, 1) + self.b[None, :, None, None]
        return self.last(self.second(self.share[0] * y + self.share[1] * self.again(y) * self.c))

    scales = {name: nn.Parameter(torch.rand(shape)) for name, shape in (("a", 6), ("b", 6), ("c", (6, 1, 1)))}
    return three(way, again=conv(6, 6), share=nn.Parameter(torch.rand(2)), **scales)


def channels_last_mlp() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.second(y + self.mlp(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))

    return three(way, mlp=nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6)))


def one_layer_in_two_places() -> nn.Module:
    shared = conv(6, 6)

    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        for layer in self.layers:
            y = F.relu(layer(y)) + y
        return self.last(self.second(y))

    return three(way, layers=nn.ModuleList([shared, conv(6, 6), shared]))


def recurrent_gates() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        hidden = cell = torch.zeros_like(y)
        for _ in range(2):
            i, f, o, g = self.gates(torch.cat([y, hidden], 1)).chunk(4, 1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
        return self.last(self.second(hidden))

    return three(way, gates=conv(12, 24))


def masked_by_sign() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.second(y * (y > 0)))

    return three(way)


def folded_batch() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        plain, flipped = self.second(self.first(torch.cat([x, x.flip(3)], 0))).chunk(2, 0)
        return self.last(plain + flipped.flip(3))

    return three(way)


def norms_of_each_channel() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        return self.last(self.slope(self.batch(self.second(self.instance(self.first(x))))))

    return three(
        way, instance=nn.InstanceNorm2d(6, affine=True), batch=nn.BatchNorm2d(5, affine=False), slope=nn.PReLU(5)
    )


def layer_norm_of_each_channel() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.second(F.layer_norm(y, y.shape[2:])))

    return three(way)


def fixed_blur() -> nn.Module:
    """A depthwise kernel in a buffer that isn't in the state_dict, as blur pools have it."""

    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.second(F.conv2d(y, self.blur, padding=1, groups=y.shape[1])))

    network = three(way)
    network.register_buffer("blur", torch.ones(6, 1, 3, 3) / 9, persistent=False)
    return network


def single_numbers() -> nn.Module:
    """Learnt and fixed tensors without dimensions: they meet features and each other, and have no channels."""

    def way(self: Any, x: Tensor) -> Tensor:
        y = F.prelu(self.first(x) * self.scale + self.shift, self.scale.sum(0).softmax(0) / 4)
        return self.last(self.scale.flip(()) * (self.shift - self.second(y) / (self.scale + self.shift)))

    return three(way, scale=nn.Parameter(torch.tensor(1.5)), shift=torch.tensor(0.3))


def branches_weighed_by_softmax() -> nn.Module:
    """Selective kernels: two branches stacked, added up, and added again with weights that are 1 over the branches."""

    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        n, c, h, w = y.shape
        both = torch.cat([y, self.again(y)], 1).view(n, 2, c, h, w)
        gate = self.gate(both.sum(1).mean((2, 3), keepdim=True)).view(n, 2, c, 1, 1).softmax(1)
        return self.last(self.second((both * gate).sum(1)))

    return three(way, again=conv(6, 6), gate=nn.Sequential(conv(6, 4, 1), nn.ReLU(), conv(4, 12, 1)))


def rolled_maps() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        return self.last(self.second(torch.roll(self.first(x), (1, 2), (2, 3)).type_as(x)))

    return three(way)


def linear_layers_written_out() -> nn.Module:
    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        mixed = F.gelu(y.flatten(2).transpose(1, 2) @ self.into) @ self.back
        return self.last(self.second(y + mixed.transpose(1, 2).reshape(y.shape)))

    return three(way, into=nn.Parameter(torch.rand(6, 10) - 0.5), back=nn.Parameter(torch.rand(1, 10, 6) - 0.5))


def kernels_mixed_from_a_set() -> nn.Module:
    """As in KBNet each pixel's kernel is a mix of four, in three parts of two channels."""

    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        n, c, h, w = y.shape
        mix = self.mix(y).flatten(2).transpose(1, 2)
        each = c // self.parts
        kernels = (mix @ self.kernels).reshape(n, h * w, self.parts, each, 9 * each)
        patches = F.unfold(y, 3, padding=1).reshape(n, self.parts, 9 * each, h * w).permute(0, 3, 1, 2)
        made = (kernels @ patches.unsqueeze(-1)).reshape(n, h * w, c) + mix @ self.biases
        return self.last(self.second(made.transpose(1, 2).reshape(n, c, h, w)))

    kernels, biases = (nn.Parameter(torch.rand(1, 4, size) - 0.5) for size in (6 * 2 * 9, 6))
    return three(way, mix=conv(6, 4), parts=3, kernels=kernels, biases=biases)


PRUNED = (
    loops_and_ifs, input_joins_features, unshuffled_input, dilated_branches, squeeze_and_excite, loose_scales,
    channels_last_mlp, one_layer_in_two_places, recurrent_gates, masked_by_sign, folded_batch, norms_of_each_channel,
    layer_norm_of_each_channel,
    fixed_blur, single_numbers, branches_weighed_by_softmax, rolled_maps, linear_layers_written_out,
    kernels_mixed_from_a_set,
)  # fmt: skip


def layers_of(coupling: Coupling) -> set[str]:
    return {layer for group in coupling.groups for layer in group.producers}


@pytest.mark.parametrize("build", PRUNED, ids=lambda build: build.__name__)
def test_everything_inside_is_pruned_counted_measured_and_saved(
    build: Callable[[], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build()
    coupling = check(network)
    assert coupling.frozen == ()
    convolutions = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert convolutions - layers_of(coupling) == {"last"}  # it makes the image
    reference = reference_magnitudes(network, coupling)
    whole = {group.name: group.channels for group in coupling.groups}
    states = group_states(network, cost.measure(network, (8, 8), 3), coupling, reference, whole)
    assert all(min(state.importances) > 0 for state in states)
    assert all(state.mac > 0 for state in states if state.name in convolutions)  # linear layers count nothing

    removed = random_removal(coupling, random.Random(1))
    small = remove(network, coupling, removed)
    monkeypatch.setattr("topologies.odd", build, raising=False)
    checkpoint.save(tmp_path / "odd.pt", small, "topologies:odd", {}, kept_indices(network, coupling, removed))
    loaded, _ = checkpoint.load(tmp_path / "odd.pt", "topologies:odd")
    assert torch.equal(loaded(EXAMPLE + 0.5), small(EXAMPLE + 0.5))


def fourier(self: Any, x: Tensor) -> Tensor:
    y = self.first(x)
    return self.last(self.second(y + torch.fft.irfft2(torch.fft.rfft2(y), s=y.shape[-2:])))


def divided_by_the_mean_of_all(self: Any, x: Tensor) -> Tensor:
    y = self.first(x)
    return self.last(self.second(y / (y.abs().mean() + 1e-3)))


def transposed_attention(self: Any, x: Tensor) -> Tensor:
    y = self.first(x)
    tokens = y.flatten(2)
    scores = (F.normalize(tokens, dim=-1) @ F.normalize(tokens, dim=-1).transpose(1, 2)).softmax(-1)
    return self.last(self.second((scores @ tokens).view_as(y)))


def moved_by_an_offset(self: Any, x: Tensor) -> Tensor:
    y = self.first(x)
    return self.last(self.second(F.grid_sample(y, y[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False)))


def every_second(self: Any, x: Tensor) -> Tensor:
    y = self.first(x)
    return self.last(self.second(torch.cat([y[:, ::2], y[:, 1::2]], 1)))


def attention_that_slides_over_channels(self: Any, x: Tensor) -> Tensor:
    y = self.first(x)
    mean = y.mean((2, 3), keepdim=True).squeeze(-1).transpose(1, 2)
    return self.last(self.second(y * torch.sigmoid(self.slide(mean)).transpose(1, 2).unsqueeze(-1)))


def standardised_kernel(self: Any, x: Tensor) -> Tensor:
    kernel = self.first.weight
    kernel = (kernel - kernel.mean((1, 2, 3), keepdim=True)) / (kernel.std((1, 2, 3), keepdim=True) + 1e-5)
    return self.last(self.second(F.conv2d(x, kernel, self.first.bias, padding=1)))


def mixed_by_a_fixed_kernel(self: Any, x: Tensor) -> Tensor:
    return self.last(self.second(F.conv2d(self.first(x), self.kernel, padding=1)))


def numpys_constant(self: Any, x: Tensor) -> Tensor:
    import numpy as np

    return self.last(self.second(self.first(x) * torch.from_numpy(np.arange(1, 7, dtype=np.float32).reshape(6, 1, 1))))


@pytest.mark.parametrize(
    ("network", "stays", "cause"),
    [
        (three(fourier), "first", "fft_rfft2"),
        (three(divided_by_the_mean_of_all), "first", "the operation mean in"),
        (three(transposed_attention), "first", "can't be followed"),
        (three(moved_by_an_offset), "first", "grid_sampler"),
        (three(every_second), "first", "the sizes in slice"),
        (three(lambda s, x: s.last(s.second(s.first(x).roll(1, 1)))), "first", "the operation roll in"),
        (three(lambda s, x: s.last(s.second(s.first(x).roll(1)))), "first", "the operation roll in"),
        (three(lambda s, x: s.last(s.second(s.norm(s.first(x)))), norm=nn.GroupNorm(3, 6)), "first", "group_norm"),
        (
            three(attention_that_slides_over_channels, slide=nn.Conv1d(1, 1, 3, padding=1)),
            "first",
            "the convolution conv1d in slide (Conv1d), which slides over channels",
        ),
        (three(standardised_kernel), "first", "which a layer uses as a parameter"),
        (three(mixed_by_a_fixed_kernel, kernel=torch.rand(6, 6, 3, 3)), "kernel", "which training doesn't change"),
        (three(numpys_constant), "first", "which forward computes with directly"),
    ],
    ids=lambda value: getattr(getattr(value, "way", None), "__name__", None),
)
def test_what_stays_is_named_while_the_rest_is_pruned(network: nn.Module, stays: str, cause: str) -> None:
    coupling = check(network)
    assert "second" in layers_of(coupling)
    assert stays not in layers_of(coupling)
    named = [sentence for sentence in coupling.frozen if sentence.startswith(f"channels of {stays}")]
    assert any(cause in sentence for sentence in named), coupling.frozen
    assert cost.measure(network, (8, 8), 3).mac > 0


@pytest.mark.parametrize(
    ("way", "cause"),
    [
        (lambda y: F.max_pool2d(y.transpose(1, 3), 3, 1, 1).transpose(1, 3), "max_pool2d"),
        (lambda y: F.avg_pool2d(y.permute(0, 2, 3, 1), (1, 2)).permute(0, 3, 1, 2).repeat(1, 2, 1, 1), "avg_pool2d"),
        (lambda y: F.interpolate(y.transpose(1, 2), size=(6, 8), mode="bicubic").transpose(1, 2), "upsample_bicubic2d"),
        (lambda y: F.adaptive_avg_pool2d(y.permute(0, 2, 3, 1), (8, 6)).permute(0, 3, 1, 2), "adaptive_avg_pool2d"),
        (lambda y: F.avg_pool3d(y.unsqueeze(1), (3, 1, 1), 1, (1, 0, 0)).squeeze(1), "avg_pool3d"),
        (lambda y: F.max_pool1d(y.mean(3).transpose(1, 2), 3, 1, 1).transpose(1, 2)[..., None] + y, "max_pool1d"),
        (lambda y: y + F.pixel_shuffle(y.tile(2, 1, 1)[:, None], 2).mean((1, 2))[:, None, ::2, ::2], "pixel_shuffle"),
        (lambda y: y * F.pixel_shuffle(torch.cat([y, y[:, :2]], 1)[:, None], 2).mean(), "pixel_shuffle"),
        (lambda y: F.pixel_shuffle(F.pixel_unshuffle(y.unsqueeze(2), 2).flatten(1, 2), 2), "pixel_unshuffle"),
    ],
    ids=["pool", "halves", "resize", "adaptive", "3-D", "1-D", "repeated", "shuffle", "unshuffle"],
)  # fmt: skip
def test_pooling_resizing_and_shuffles_that_cross_channels_leave_them_whole(way: Callable, cause: str) -> None:
    coupling = check(three(lambda self, x: self.last(self.second(way(self.first(x))))))
    assert layers_of(coupling) == {"second"}
    assert f"the operation {cause} in" in coupling.frozen[0]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [
    parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm, nn.utils.spectral_norm,
])  # fmt: skip
def test_a_layer_whose_kernel_is_computed_is_named_trained_and_pruned_around(
    wrap: Callable[[nn.Module], nn.Module],
    setup: Setup,
    settings: config.Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build() -> nn.Module:
        return nn.Sequential(wrap(conv(3, 6)), nn.ReLU(), conv(6, 5), conv(5, 12), nn.PixelShuffle(2))

    torch.manual_seed(0)
    network = build()
    coupling = check(network)
    assert layers_of(coupling) == {"2"}
    assert len(coupling.frozen) == 1
    assert coupling.frozen[0].startswith("channels of 0 can't be removed because of what ")
    monkeypatch.setattr("topologies.odd", build, raising=False)
    wanted = config.Network(factory="topologies:odd", args={}, task="super_resolution", scale=2)
    log = run(network, replace(setup, network=wanted), settings, A, tmp_path)
    assert log[-1].mac < log[0].mac


def test_a_network_that_cant_be_pickled_isnt_logged_as_a_model_and_the_run_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: dict[str, str] = {}
    monkeypatch.setattr(Run, "tags", lambda self, tags: said.update(tags))
    monkeypatch.setattr(stores, "probe", lambda uri: None)  # there is no store
    Run(None, "", "").model(parametrizations.weight_norm(conv(3, 3)), 3, "odd", Path("network.pt"))
    assert said["model"].startswith("not logged, since it can't be pickled: Serialization of parametrized modules")


def auxiliary_head(self: Any, x: Tensor) -> Tensor:
    y = self.second(self.first(x))
    if self.training:
        self.side = self.head(y).abs().mean()
    return self.last(y)


def branch_by_chance(self: Any, x: Tensor) -> Tensor:
    y = self.second(self.first(x))
    if self.training and torch.rand(()) < 0.3:
        y = self.head(y)[:, :5]
    return self.last(y)


def branch_for_large_images(self: Any, x: Tensor) -> Tensor:
    y = self.second(self.first(x))
    return self.last(self.head(y)[:, :5] if x.shape[-1] > 12 else y)


@pytest.mark.parametrize("way", [auxiliary_head, branch_by_chance, branch_for_large_images])
def test_a_layer_that_the_trace_misses_stays_whole_with_what_it_reads_and_is_named(way: Callable) -> None:
    network = three(way, head=conv(5, 7))
    before = torch.get_rng_state(), random.getstate()
    coupling = find_groups(network, EXAMPLE)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert layers_of(coupling) == {"first"}
    assert (
        coupling.frozen[0]
        == "channels of head can't be removed because of the traced forward, in which these layers don't run"
    )
    assert coupling.frozen[1].startswith("channels of second can't be removed because of a forward that fails ")
    small = remove(network, coupling, random_removal(coupling, random.Random(0))).train()
    for _ in range(20):
        small(torch.rand(2, 3, 16, 16)).mean().backward()


def test_a_layer_that_is_never_called_keeps_nothing_else() -> None:
    coupling = check(three(lambda self, x: self.last(self.second(self.first(x))), left_over=conv(6, 9)))
    assert layers_of(coupling) == {"first", "second"}
    assert coupling.frozen == (
        "channels of left_over can't be removed because of the traced forward, in which these layers don't run",
    )


def test_a_layer_that_is_never_called_costs_no_more_runs_for_each_trial() -> None:
    """32 of the whole network tell that training doesn't call it; each smaller network then trains once."""
    widths: list[int] = []  # of each forward in training

    def way(self: Any, x: Tensor) -> Tensor:
        if self.training:
            widths.append(len(self.first.weight))
        return self.last(self.second(self.first(x)))

    assert layers_of(find_groups(three(way, left_over=nn.PReLU()), EXAMPLE)) == {"first", "second"}
    assert widths.count(6) == 32
    assert 1 <= len(widths) - 32 <= 4


def test_a_kernel_that_forward_writes_into_a_layer_stays_whole_and_the_others_are_pruned() -> None:
    """SPAN's way: what trains are two kernels, and evaluation runs their sum."""

    def way(self: Any, x: Tensor) -> Tensor:
        if self.training:
            return self.last(self.second((self.left(x) + self.right(x)).relu()))
        self.first.weight.data = self.left.weight.data.clone() + self.right.weight.data.clone()
        return self.last(self.second(self.first(x).relu()))

    network = unsettle(three(way, left=conv(3, 6, bias=False), right=conv(3, 6, bias=False)))
    coupling = find_groups(network, EXAMPLE)
    assert layers_of(coupling) == {"second"}
    assert coupling.frozen[0].startswith("channels of first can't be removed because of what ")
    assert coupling.frozen[0].endswith(" computes, which a layer uses as a parameter")
    assert_equals_mask(network, coupling, {"second": [0, 3]})


def test_noise_of_a_written_size_in_training_alone_keeps_its_channels() -> None:
    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.second(y + torch.randn(1, 6, 1, 1) if self.training else y))

    coupling = check(three(way))
    assert layers_of(coupling) == {"second"}
    assert coupling.frozen[0].startswith(
        "channels of first can't be removed because of a forward that fails in training"
    )


def test_a_network_that_leaves_features_on_itself_is_pruned_after_training(
    setup: Setup, settings: config.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> nn.Module:
        def way(self: Any, x: Tensor) -> Tensor:
            self.features = [self.first(x)]
            self.latest = self.second(self.features[0])
            return F.pixel_shuffle(self.last(self.latest), 2)

        return three(way, last=conv(5, 12))

    torch.manual_seed(0)
    monkeypatch.setattr("topologies.odd", build, raising=False)
    wanted = config.Network(factory="topologies:odd", args={}, task="super_resolution", scale=2)
    log = run(build(), replace(setup, network=wanted), settings, A, tmp_path)
    assert log[-1].mac < log[0].mac


def test_a_copy_shares_no_parameter_and_no_buffer() -> None:
    network = norms_of_each_channel()
    copied = networks.duplicate(network)
    for name, tensor in copied.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
        assert tensor.data_ptr() != network.state_dict()[name].data_ptr()


def test_a_network_that_copies_itself_by_building_a_new_one_keeps_its_channels_and_says_why() -> None:
    class Rebuilt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = conv(3, 6), conv(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu())

        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            made = Rebuilt()
            made.load_state_dict(self.state_dict())
            return made

    coupling = find_groups(Rebuilt(), EXAMPLE)
    assert not coupling.groups
    assert "a forward that fails when channels go (" in str(coupling.frozen)


def test_a_network_whose_hook_keeps_a_feature_can_be_copied_after_training() -> None:
    class Kept:
        feature: Tensor

        def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
            self.feature = output

    network, kept = norms_of_each_channel(), Kept()
    network.first.register_forward_hook(kept)
    network(EXAMPLE)
    copied = networks.duplicate(network)
    assert kept.feature.grad_fn is not None  # the original can still be trained on
    assert torch.equal(copied(EXAMPLE), network(EXAMPLE))


def test_a_hook_or_a_layer_given_to_a_copy_isnt_the_originals() -> None:
    network = norms_of_each_channel()
    copied = networks.duplicate(network)
    copied.first.register_forward_hook(lambda *_: pytest.fail("the original has the hook of its copy"))
    copied.first.add_module("more", nn.ReLU())
    copied.slope.register_buffer("more", torch.ones(1))
    assert not network.first._modules
    assert not network.slope._buffers
    network(EXAMPLE)


@pytest.mark.parametrize("way", [lambda self, x: (self.first(x), x), lambda self, x: {"restored": self.first(x)}])
def test_a_forward_that_gives_no_single_tensor_is_refused_in_one_sentence(way: Callable) -> None:
    with pytest.raises(UserError, match="gives several tensors or a container of them; pruning needs one tensor"):
        find_groups(three(way), EXAMPLE)


def test_an_untraceable_forward_prints_nothing_beside_its_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    def way(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(self.second(y if y.mean() > 0 else -y))

    with pytest.raises(UserError, match="must not branch on the values of tensors"):
        find_groups(three(way), EXAMPLE)
    assert capfd.readouterr() == ("", "")


def test_lazy_layers_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topologies.odd", lambda: nn.Sequential(nn.LazyConv2d(3, 1)), raising=False)
    with pytest.raises(UserError, match=r"'topologies:odd' leaves the size of 0\.weight open; lazy layers"):
        networks.build("topologies:odd", {})


@pytest.mark.parametrize(
    ("way", "sentence"),
    [
        (lambda s, x: (s.last(x), x) if s.training else s.last(x), "gives a tuple in training, but (4, 3, 16, 16) is"),
        (lambda s, x: s.last(x)[..., : -s.training], "gives (4, 3, 16, 15) in training, but (4, 3, 16, 16) is needed"),
        (lambda s, x: s.last(x[:, : 3 - s.training]), "fails in training, step 0: Given groups=1, weight of size"),
    ],
    ids=["tuple", "size", "failure"],
)
def test_a_forward_that_goes_wrong_in_training_alone_is_said_in_one_sentence(
    way: Callable, sentence: str, setup: Setup
) -> None:
    network = Odd(way, last=nn.Sequential(conv(3, 12), nn.PixelShuffle(2)))
    with pytest.raises(UserError) as error:
        fit(network, setup.train, setup.recipe, setup.machine, seed=0)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
