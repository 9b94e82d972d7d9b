"""Sizes of splits that modules keep as attributes go down with the channels, in the network and in its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime
import pytest
import torch
from removals import EXAMPLE, check
from topologies import Attention, Frame, conv, unsettle
from torch import Tensor, nn

from pipeline import export
from pipeline.errors import UserError
from pipeline.networks import checkpoint
from pipeline.networks.sizes import sizes
from pipeline.pruning import prune
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.removal import kept_indices, masked, remove
from pipeline.pruning.sizes import tagged


class Distilling(nn.Module):
    """IMDN's block (Hui et al., ACM MM 2019), smaller: 8 channels are split into 3, put aside, and 5 that go on."""

    def __init__(self, form: str = "numbers") -> None:
        super().__init__()
        self.distilled, self.remaining = 3, 5
        self.widths = (3, 5) if form == "tuple" else [3, 5]
        self.first, self.second, self.third = conv(6, 8), conv(5, 8), conv(5, 3)
        self.fuse = conv(9, 6, 1)
        self.form = form

    def split(self, made: Tensor) -> tuple[Tensor, ...]:
        if self.form in ("tuple", "list"):
            return made.split(self.widths, 1)
        if self.form == "derived":
            return torch.split(made, [self.distilled, made.shape[1] - self.distilled], dim=1)
        if self.form == "literal":
            return torch.split(made, [3, 5], dim=1)
        return torch.split(made, (self.distilled, self.remaining), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = self.split(torch.relu(self.first(x)))
        second, rest = self.split(torch.relu(self.second(rest)))
        return x + self.fuse(torch.cat([first, second, self.third(rest)], dim=1))


class Uneven(nn.Module):
    """One attribute gives a part of a layer of 8 channels and one of a layer of 6."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = 4
        self.first, self.second, self.fuse = conv(6, 8), conv(4, 6), conv(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x)
        one, rest = made.split([self.aside, made.shape[1] - self.aside], 1)
        made = self.second(rest)
        other, rest = made.split([self.aside, made.shape[1] - self.aside], 1)
        return x + self.fuse(torch.cat([one, other, rest], 1))


class Counting(nn.Module):
    """The attribute that gives a part's size is also a factor: with fewer channels, the result is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = 4
        self.first, self.fuse = conv(6, 8), conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        made = self.first(x)
        one, rest = made.split([self.aside, made.shape[1] - self.aside], 1)
        return x + self.fuse(torch.cat([one * self.aside, rest], 1))


class Halves(nn.Module):
    """One number for both parts of a split."""

    def __init__(self) -> None:
        super().__init__()
        self.half = 4
        self.first, self.last = conv(6, 8), conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.first(x), self.half, dim=1)
        return x + self.last(left * torch.sigmoid(right))


def distilling(form: str = "numbers") -> nn.Module:
    """A factory."""
    torch.manual_seed(0)
    return unsettle(Frame(6, Distilling(form)))


@pytest.mark.parametrize("form", ["numbers", "tuple", "list", "derived", "literal"])
def test_the_parts_of_a_split_are_pruned_by_themselves_with_their_sizes(form: str) -> None:
    network = distilling(form)
    coupling = check(network)
    groups = {group.name: group for group in coupling.groups}
    assert {name: group.channels for name, group in groups.items()} == {
        "enter+1": 6, "part.first+1#1": 3, "part.first+1#2": 5, "part.third": 3,
    }  # fmt: skip
    assert coupling.frozen == ()
    assert groups["part.first+1#1"].producers == groups["part.first+1#2"].producers == ("part.first", "part.second")
    assert groups["part.first+1#2"].readers == ("part.second", "part.third")
    removed = {"part.first+1#1": [0, 2], "part.first+1#2": [1], "part.third": [0], "enter+1": [5]}
    small, reference = remove(network, coupling, removed).double(), masked(network, coupling, removed).double()
    assert tuple(small.part.first.weight.shape) == (5, 5, 3, 3)
    if form in ("tuple", "list"):
        assert small.part.widths == (tuple, list)[form == "list"]((1, 4))
        assert network.part.widths == (tuple, list)[form == "list"]((3, 5))
    elif form == "literal":
        assert (small.part.split_size_0, small.part.split_size_1) == (1, 4)
        assert "split_size_0" not in vars(network.part)
    else:
        assert (small.part.distilled, small.part.remaining) == (
            1,
            5 if form == "derived" else 4,
        )  # the derived form doesn't read the second
        assert (network.part.distilled, network.part.remaining) == (3, 5)
    image = torch.rand(1, 3, 9, 11, dtype=torch.float64)
    with torch.no_grad():
        assert (small(image) - reference(image)).abs().max() < 1e-10


class Partial(nn.Module):
    """PLKSR's block (Lee et al., 2024), smaller: slices to and from an attribute, one of them written to in place."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.first, self.part, self.last = conv(6, 8), conv(3, 3), conv(8, 6)
        self.idx, self.form = 3, form

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        if self.form == "in place":
            y[:, : self.idx] = self.part(y[:, : self.idx])
        elif self.form == "narrow":
            y = torch.cat([self.part(y.narrow(1, 0, self.idx)), y[:, self.idx :]], 1)
        else:
            y = torch.cat([self.part(y[:, : self.idx]), y[:, self.idx :]], 1)
        return x + self.last(y)


@pytest.mark.parametrize("form", ["in place", "slices", "narrow"])
def test_slices_up_to_an_attribute_are_pruned_with_it(form: str) -> None:
    network = unsettle(Frame(6, Partial(form)))
    coupling = check(network)
    assert coupling.frozen == ()
    counted = [group for group in coupling.groups if any(slot.tensor == "part.idx" for slot in group.slots)]
    assert [group.channels for group in counted] == [3]
    assert remove(network, coupling, {counted[0].name: [1]}).part.idx == 2
    assert sum(group.channels for group in coupling.groups if "part.last" in group.readers) == 8


class Thirds(nn.Module):
    """8 channels in parts of 2, 3 and 3 whose bounds are sums and differences of attributes."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.one, self.two, self.widths, self.form = 2, 3, [2, 3], form
        self.first, self.last = conv(6, 8), conv(8, 6)
        self.parts = nn.ModuleList([conv(2, 2), conv(3, 3), conv(3, 3)])

    def divided(self, y: Tensor) -> Sequence[Tensor]:
        one, two = self.one, self.two
        if self.form == "sum":
            return y[:, :one], y[:, one : one + two], y[:, one + two :]
        if self.form == "sum of a list":
            return y[:, : self.widths[0]], y[:, self.widths[0] : sum(self.widths)], y[:, sum(self.widths) :]
        if self.form == "sums in a split":
            front, rest = y.split([two + one, y.shape[1] - two - one], 1)
            return *front.split([one, two], 1), rest  # which says that the two of the sum stand the other way round
        if self.form == "narrow":
            return y.narrow(1, 0, one), y.narrow(1, one, two), y[:, one + two :]
        rest = y[:, :-two]  # "from the end"
        return rest[:, :one], rest[:, one:], y[:, -two:]

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.parts, self.divided(torch.relu(self.first(x))), strict=True)
        return x + self.last(torch.cat([layer(part) for layer, part in parts], 1))


@pytest.mark.parametrize("form", ["sum", "sum of a list", "sums in a split", "narrow", "from the end"])
def test_parts_whose_bounds_are_sums_of_attributes_are_pruned_by_themselves(form: str) -> None:
    network = unsettle(Frame(6, Thirds(form)))
    coupling = check(network)
    assert coupling.frozen == ()
    groups = {group.readers: group for group in coupling.groups if group.producers == ("part.first",)}
    assert [groups[(f"part.parts.{number}",)].channels for number in range(3)] == [2, 3, 3]
    small = remove(network, coupling, {groups[("part.parts.0",)].name: [0], groups[("part.parts.1",)].name: [0]})
    counted = (1, 3) if form == "from the end" else (1, 2)
    assert tuple(small.part.widths if form == "sum of a list" else (small.part.one, small.part.two)) == counted


class Difference(nn.Module):
    """8 channels, of which 3 stand at one end; the others are what is left of an attribute that counts all."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.aside, self.all, self.form = 3, 8, form
        self.first, self.last, self.part = conv(6, 8), conv(8, 6), conv(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        if self.form == "split":
            aside, rest = torch.split(y, [self.aside, self.all - self.aside], 1)
        elif self.form == "bound":
            rest, aside = y[:, : self.all - self.aside], y[:, self.all - self.aside :]
        else:
            rest, aside = y.narrow(1, 0, self.all - self.aside), y[:, -self.aside :]
        return x + self.last(torch.cat([aside, self.part(rest)], 1))


@pytest.mark.parametrize("form", ["split", "bound", "narrow"])
def test_a_part_that_is_the_rest_of_an_attribute_is_pruned_with_both_attributes(form: str) -> None:
    network = unsettle(Frame(6, Difference(form)))
    coupling = check(network)
    assert coupling.frozen == ()
    groups = {group.readers: group for group in coupling.groups if group.producers == ("part.first",)}
    aside, rest = groups[("part.last",)], groups[("part.part",)]
    assert (aside.channels, rest.channels) == (3, 5)
    small = remove(network, coupling, {aside.name: [0, 1], rest.name: [4]})
    assert (small.part.aside, small.part.all) == (1, 5)


def test_other_arithmetic_of_sizes_gives_plain_numbers() -> None:
    class Width(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = 6, 4

    module = tagged(Width())
    a, b = module.a, module.b
    plain = [a * b, a // 2, a + 1, 1 + a, a - 1, 9 - a, a % b, abs(a), a + 0.5, 0.5 + a, a - 0.5]
    assert [type(number) for number in plain] == [int] * 8 + [float] * 3
    assert plain == [24, 3, 7, 7, 5, 3, 2, 6, 6.5, 6.5, 5.5]
    assert (a + b, a - b, -a, sum([a, b])) == (10, 2, -6, 10)
    assert (a - b).size == ((("a", 0), 6), (("b", 0), -4))
    assert torch.equal(a + torch.ones(2), torch.full((2,), 7.0))


class Heads(nn.Module):
    """Attention between channels, in heads (Restormer; Zamir et al., CVPR 2022): heads go, not single channels."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.temperature = nn.Parameter(torch.ones(3, 1, 1))
        self.first, self.last = conv(6, 36, 1), conv(12, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (part.reshape(b, self.heads, -1, h * w) for part in self.first(x).chunk(3, 1))
        q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
        mixed = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v
        return x + self.last(mixed.reshape(b, -1, h, w))


def test_heads_of_an_attention_go_as_a_whole_with_the_attribute_that_counts_them() -> None:
    network = unsettle(Frame(6, Heads()))
    coupling = check(network)
    group = next(group for group in coupling.groups if any(slot.tensor == "part.heads" for slot in group.slots))
    places = {slot.tensor: slot.index for slot in group.slots}
    assert group.channels == 3
    assert places["part.last.weight"] == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))
    assert places["part.first.weight"][1] == (4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31)
    assert places["part.temperature"] == ((0,), (1,), (2,))
    assert remove(network, coupling, {group.name: [1]}).part.heads == 2


class Context(nn.Module):
    """MIRNet-v2's two parts (Zamir et al., TPAMI 2022): a product over pixels, and branches weighed by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.height = 2
        self.mask, self.one, self.two, self.weigh = conv(6, 1, 1), conv(6, 6), conv(6, 6), conv(6, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        mask = self.mask(x).view(b, 1, h * w, 1).softmax(2)
        x = x + (x.view(b, 1, c, h * w) @ mask).view(b, c, 1, 1)
        both = torch.cat([self.one(x), self.two(x)], 1).view(b, self.height, c, h, w)
        weights = self.weigh(both.sum(1).mean((2, 3), keepdim=True)).view(b, self.height, c, 1, 1).softmax(1)
        return x + (both * weights).sum(1)


def test_branches_that_a_softmax_weighs_and_a_product_over_pixels_cost_no_channel() -> None:
    coupling = check(Frame(6, Context()))
    # one family of them: trunk, branches and weights; the mask's one channel is a map for all of them
    assert sorted(group.channels for group in coupling.groups) == [6]
    assert not any("part.mask" in group.producers for group in coupling.groups)


@pytest.mark.parametrize(
    "way",
    [
        lambda y: y.repeat_interleave(2, 1)[:, ::2] * y,
        lambda y: y + y.repeat(1, 2, 1, 1).chunk(2, 1)[1],
        lambda y: y + nn.functional.avg_pool2d(y.tile(2, 2, 2).chunk(2, 1)[1], 2),
        lambda y: y + y.mean((2, 3), keepdim=True).expand_as(y),
        lambda y: nn.functional.fold(nn.functional.unfold(y, 3, padding=1), y.shape[2:], 3, padding=1),
    ],
    ids=["repeat_interleave", "repeat", "tile", "expand_as", "im2col"],
)
def test_repeated_channels_and_patches_go_with_their_channel(way: Callable) -> None:
    class Way(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = conv(6, 5), conv(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.last(way(torch.relu(self.first(x))))

    assert {group.name: group.channels for group in check(Frame(6, Way())).groups} == {"enter+1": 6, "part.first": 5}


class Gated(nn.Module):
    """A2N's block (Chen et al., 2021), smaller: the sizes of its input are those of what it makes, to two views."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.first, self.gate, self.last, self.form = conv(6, 6, 1), nn.Linear(6, 6), conv(6, 6), form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "size":
            number, channels = x.size(0), x.size(dim=1)
        else:
            number, channels, _, _ = x.shape
        made = torch.relu(self.first(x))
        pooled = made.mean((2, 3), keepdim=True)
        gate = self.gate(
            pooled.view(number, channels) if self.form != "reshape" else pooled.reshape((number, channels))
        )
        gate = gate.unflatten(1, (channels, 1, 1)) if self.form == "unflatten" else gate.view(number, channels, 1, 1)
        return x + self.last(made * gate.sigmoid())


@pytest.mark.parametrize("form", ["shape", "size", "reshape", "unflatten"])
def test_channels_that_a_view_counts_by_another_tensors_shape_go_with_that_ones(form: str) -> None:
    coupling = check(Frame(6, Gated(form)))
    assert coupling.frozen == ()
    assert [group.producers for group in coupling.groups] == [("enter", "part.first", "part.gate", "part.last")]


def test_a_file_gives_the_sizes_back_and_is_exported(tmp_path: Path) -> None:
    network = distilling()
    coupling = find_groups(network, EXAMPLE)
    removed = {"part.first+1#1": [1], "part.first+1#2": [0, 4]}
    small, kept = remove(network, coupling, removed), kept_indices(network, coupling, removed)
    assert kept["part.distilled"] == {0: [0, 2]}
    assert kept["part.remaining"] == {0: [1, 2, 3]}
    checkpoint.save(tmp_path / "small.pt", small, f"{__name__}:distilling", {}, kept)
    loaded, meta = checkpoint.load(tmp_path / "small.pt", f"{__name__}:distilling")
    assert (loaded.part.distilled, loaded.part.remaining, meta["kept"]) == (2, 3, kept)
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        expected = small(image)
        assert torch.equal(loaded(image), expected)
    session = onnxruntime.InferenceSession(export.to_onnx(loaded, tuple(image.shape), Path("small.onnx")))
    made = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    assert (torch.from_numpy(made) - expected).abs().max() < 1e-5 * expected.abs().max()


class Flattened(nn.Module):
    """Pixels in a row, and back: the size of the channels is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 5
        self.first, self.last = conv(6, 5), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).view(len(x), self.width, -1)
        return x + self.last((y - y.mean(2, keepdim=True)).reshape(len(x), self.width, *x.shape[2:]))


class Unflattened(nn.Module):
    """Channels as heads, of each of which the mean goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.first, self.last = conv(6, 6), conv(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(torch.relu(self.first(x)).unflatten(1, (self.heads, -1)).mean(2))


class Literal(nn.Module):
    """Sizes as numbers in the forward: bounds of slices, a view of pooled channels, and pixels in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part, self.last = conv(6, 8), conv(3, 3), conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.cat([self.part(y[:, :3]), y[:, 3:]], 1)
        return x + self.last(y * y.mean((2, 3)).view(-1, 8, 1, 1).sigmoid())


def test_numbers_in_a_forward_go_down_with_the_channels_that_they_count() -> None:
    network = unsettle(Frame(6, Literal()))
    coupling = check(network)
    assert coupling.frozen == ()
    front = next(group for group in coupling.groups if group.producers == ("part.first",) and group.channels == 3)
    small = remove(network, coupling, {front.name: [1], "part.part": [0, 2]})
    assert [getattr(small.part, f"forward_size_{n}") for n in range(3)] == [2, 2, 6]
    assert small.part.last.weight.shape[1] == 6


FORMS: dict[str, Callable[[], nn.Module]] = {
    "literal": Literal, "literal split": lambda: Distilling("literal"),
    "slices": lambda: Partial("slices"), "written in place": lambda: Partial("in place"),
    "narrow": lambda: Partial("narrow"), "halves": Halves, "heads": Heads, "reshape": Flattened,
    "unflatten": Unflattened, "sum": lambda: Thirds("sum"), "sum of a list": lambda: Thirds("sum of a list"),
    "from the end": lambda: Thirds("from the end"), "difference": lambda: Difference("split"),
    "einsum": lambda: Attention(6, "einsum"), "sdpa": lambda: Attention(6, "sdpa"),
}  # fmt: skip


def sized(form: str) -> nn.Module:
    """A factory."""
    torch.manual_seed(0)
    return unsettle(Frame(6, FORMS[form]()))


@pytest.mark.parametrize("form", FORMS)
def test_a_file_gives_back_sizes_of_every_form(form: str, tmp_path: Path) -> None:
    network = sized(form)
    coupling = find_groups(network, EXAMPLE)
    counted = [group for group in coupling.groups if any(slot.role == "size" for slot in group.slots)]
    removed = {group.name: [group.channels - 1] for group in counted}
    assert removed
    small, kept = remove(network, coupling, removed), kept_indices(network, coupling, removed)
    attributes = {slot.tensor for group in counted for slot in group.slots if slot.role == "size"}
    assert attributes <= set(kept)
    checkpoint.save(tmp_path / "small.pt", small, f"{__name__}:sized", {"form": form}, kept)
    loaded, meta = checkpoint.load(tmp_path / "small.pt", f"{__name__}:sized")
    assert meta["kept"] == kept
    assert {name: sizes(loaded)[name] for name in attributes} == {name: sizes(small)[name] for name in attributes}
    assert all(sizes(small)[name] != sizes(network)[name] for name in attributes)
    image = torch.rand(2, 3, 10, 12)
    with torch.no_grad():
        expected = small(image)
        assert torch.equal(loaded(image), expected)
    if form in ("heads", "literal"):
        session = onnxruntime.InferenceSession(export.to_onnx(loaded, tuple(image.shape), tmp_path / "small.onnx"))
        made = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
        assert (torch.from_numpy(made) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_two_iterations_remove_is_loaded_at_once(tmp_path: Path) -> None:
    network = distilling()
    first = prune.cut(prune.Current(network, find_groups(network, EXAMPLE), {}), {"part.first+1#2": [0, 3]})
    second = prune.cut(first, {"part.first+1#1": [1], "part.first+1#2": [1]})  # the second of 1, 2 and 4
    assert (second.kept["part.distilled"], second.kept["part.remaining"]) == ({0: [0, 2]}, {0: [1, 4]})
    checkpoint.save(tmp_path / "small.pt", second.network, f"{__name__}:distilling", {}, second.kept)
    loaded, _ = checkpoint.load(tmp_path / "small.pt", f"{__name__}:distilling")
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(image), second.network(image))


def test_one_number_for_both_parts_removes_them_in_pairs() -> None:
    coupling = check(Frame(6, Halves()))
    group = next(group for group in coupling.groups if group.name == "part.first")
    assert [slot.index for slot in group.slots if slot.tensor == "part.first.weight"] == [
        ((0, 4), (1, 5), (2, 6), (3, 7))
    ]
    assert [slot.index for slot in group.slots if slot.tensor == "part.half"] == [((0,), (1,), (2,), (3,))]


def test_an_attribute_that_layers_of_different_sizes_share_is_refused_and_named() -> None:
    network = Frame(6, Uneven())
    coupling = check(network)
    assert [sentence for sentence in coupling.frozen if "the attribute part.aside" in sentence] == [
        f"channels of part.{layer} can't be removed because of the attribute part.aside, which gives a size in layers "
        "of 8 channels (split_with_sizes in part (Uneven)) and of 6 (split_with_sizes in part (Uneven))"
        for layer in ("first", "second")
    ]
    assert network.part.aside == 4
    assert not [slot for group in coupling.groups for slot in group.slots if slot.tensor == "part.aside"]


def test_an_attribute_that_also_counts_elsewhere_is_refused_by_the_trial() -> None:
    network = Frame(6, Counting())
    coupling = check(network)
    assert not [slot for group in coupling.groups for slot in group.slots if slot.tensor == "part.aside"]
    assert coupling.frozen == (
        "channels of part.first can't be removed because of the sizes in split_with_sizes in part (Counting), "
        "which don't follow a removal as the attribute part.aside counts it",
    )
    assert network.part.aside == 4


class Weighing(nn.Module):
    """Parts by numbers in the forward, weighed by how many channels there are: with fewer, the result is another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fuse = conv(6, 8), conv(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        one, rest = self.first(x).split([4, 4], 1)
        return x + self.fuse(torch.cat([one * one.shape[1], rest * rest.shape[1]], 1))


def test_numbers_that_a_removal_may_not_change_are_named_as_numbers() -> None:
    coupling = check(Frame(6, Weighing()))
    assert coupling.frozen == (
        "channels of part.first can't be removed because of the sizes in split_with_sizes in part (Weighing), "
        "which don't follow a removal as the number part.forward_size_0 counts it and 1 more like it",
    )


def test_sizes_are_whole_numbers_of_the_networks_own_modules_and_methods() -> None:
    block = Distilling("tuple")
    block.ratio, block.flag, block.empty, block.mixed = 0.5, True, 0, (1, "a")
    assert sizes(Frame(6, block)) == {
        "part.distilled": (3,), "part.remaining": (5,), "part.widths": (3, 5),
        "part.split_size_0": (3,), "part.split_size_1": (5,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dims", "said"),
    [({1: [0]}, "names dimension 1"), ({0: []}, "numbers from 0 to 2"), ({0: [0, 3]}, "numbers from 0 to 2")],
)
def test_sizes_that_a_file_spoils_are_refused(dims: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        checkpoint.resize(distilling(), {"part.distilled": dims})
