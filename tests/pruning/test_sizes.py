"""Sizes of splits that modules keep as attributes go down with the channels, in the network and in its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from removals import EXAMPLE, check
from topologies import Frame, conv, unsettle
from torch import Tensor, nn

from pipeline import export
from pipeline.errors import UserError
from pipeline.networks import checkpoint
from pipeline.networks.sizes import sizes
from pipeline.pruning import prune
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.removal import kept_indices, masked, remove


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


@pytest.mark.parametrize("form", ["numbers", "tuple", "list", "derived"])
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


def test_sizes_are_whole_numbers_of_the_networks_own_modules() -> None:
    block = Distilling("tuple")
    block.ratio, block.flag, block.empty, block.mixed = 0.5, True, 0, (1, "a")
    assert sizes(Frame(6, block)) == {
        "part.distilled": (3,), "part.remaining": (5,), "part.widths": (3, 5),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dims", "said"),
    [({1: [0]}, "names dimension 1"), ({0: []}, "numbers from 0 to 2"), ({0: [0, 3]}, "numbers from 0 to 2")],
)
def test_sizes_that_a_file_spoils_are_refused(dims: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        checkpoint.resize(distilling(), {"part.distilled": dims})
