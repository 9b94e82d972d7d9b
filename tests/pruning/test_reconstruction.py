"""Least squares on what layers read: against numbers by hand, torch's own least squares, and coupled networks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import networks
from pipeline.pruning import readers, removal
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.reconstruction import compensated, moments, saliencies, weakest
from pipeline.pruning.removal import remove


class Chain(nn.Module):
    """One layer that makes channels and one that reads them."""

    def __init__(self, makes: nn.Module, reads: nn.Module) -> None:
        super().__init__()
        self.makes, self.reads = makes, reads

    def forward(self, x: Tensor) -> Tensor:
        return self.reads(torch.relu(self.makes(x)))


def images(count: int = 4, side: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(2, 3, side, side, generator=generator) for _ in range(count)]


def pairs(network: nn.Module, batches: Sequence[Tensor] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, and targets from which the output is off by 1, up or down by chance."""
    generator = torch.Generator().manual_seed(0)
    for image in images() if batches is None else batches:
        output = network(image).detach()
        yield image, output - (torch.randint(0, 2, output.shape, generator=generator) * 2 - 1)


def damage(network: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        return float(sum((network(image) - other(image)).square().mean() for image in images()))


def test_a_channel_that_is_twice_another_is_made_up_for_exactly() -> None:
    torch.manual_seed(0)
    network = Chain(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 3, padding=1)).eval()
    with torch.no_grad():
        network.makes.weight.abs_(), network.makes.bias.abs_()  # no channel that is always 0
        network.makes.weight[2], network.makes.bias[2] = 2 * network.makes.weight[0], 2 * network.makes.bias[0]
    groups = find_groups(network, images()[0][:1])
    (group,) = groups.groups
    known = moments(network, groups, pairs(network))
    small = remove(compensated(network, groups, {group.name: (2,)}, known), groups, {group.name: (2,)})
    assert damage(network, small) < 1e-9
    expected = network.reads.weight[:, 0] + 2 * network.reads.weight[:, 2]
    assert torch.allclose(small.reads.weight[:, 0], expected, atol=1e-3)
    assert set(weakest(network, groups, known, {group.name: 1})[group.name]) <= {0, 2}


def test_what_a_channel_gives_on_average_goes_into_the_bias() -> None:
    network = Chain(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)).eval()
    with torch.no_grad():
        network.makes.weight[1], network.makes.bias[1] = 0.0, 0.5  # a constant
        network.reads.weight[:, 1] = torch.tensor([1.0, -2.0, 4.0]).view(3, 1, 1)
    groups = find_groups(network, images()[0][:1])
    known = moments(network, groups, pairs(network))
    changed = compensated(network, groups, {groups.groups[0].name: (1,)}, known)
    expected = network.reads.bias + torch.tensor([0.5, -1.0, 2.0])
    assert torch.allclose(changed.reads.bias, expected, atol=1e-3)


@pytest.mark.parametrize(
    "reads",
    [
        nn.Conv2d(5, 3, 3, padding=1),
        nn.Conv2d(5, 3, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(5, 3, (4, 3), padding="same"),
        nn.Conv2d(5, 3, (3, 1), stride=2, padding=(1, 0), bias=False),
        nn.ConvTranspose2d(5, 3, 2, 2, bias=False),
        nn.ConvTranspose2d(5, 3, 4, 2, 1, bias=False),
        nn.ConvTranspose2d(5, 3, (3, 5), (2, 3), (1, 2), output_padding=(1, 0), bias=False),
    ],
    ids=str,
)
def test_the_weights_are_those_of_least_squares(reads: nn.Module) -> None:
    torch.manual_seed(1)
    network = Chain(nn.Conv2d(3, 5, 3, padding=1), reads).eval()
    groups = find_groups(network, images()[0][:1])
    removed = {groups.groups[0].name: (1, 4)}
    known = moments(network, groups, pairs(network))
    changed = compensated(network, groups, removed, known)

    made = [torch.relu(network.makes(image)) for image in images()]
    for view in readers.views(reads):
        rows = torch.cat([readers.patches(reads, view, image, reads(image).shape[2:]) for image in made]).double()
        kept = [c * view.places + k for c in (0, 2, 3) for k in range(view.places)]
        kept += [rows.shape[1] - 1] if reads.bias is not None else []
        expected = rows @ readers.matrix(reads, view).T
        best = torch.linalg.lstsq(rows[:, kept], expected).solution.T
        assert torch.allclose(readers.matrix(changed.reads, view)[:, kept], best.detach(), atol=2e-3)


@pytest.mark.parametrize(
    "reads",
    [
        nn.ConvTranspose2d(5, 3, 2, 2),  # four phases of one view
        nn.ConvTranspose2d(5, 3, 4, 2, 1),  # four views
        nn.ConvTranspose2d(5, 3, 1, 2, output_padding=1),  # three phases are the bias alone
        nn.ConvTranspose2d(5, 3, 3, 1, 1),
    ],
    ids=str,
)
def test_phases_that_share_a_bias_are_the_least_squares_of_all_their_outputs(reads: nn.ConvTranspose2d) -> None:
    torch.manual_seed(1)
    network = Chain(nn.Conv2d(3, 5, 3, padding=1), reads).eval()
    groups = find_groups(network, images()[0][:1])
    removed = {groups.groups[0].name: (1, 4)}
    changed = compensated(network, groups, removed, moments(network, groups, pairs(network))).reads

    made = torch.cat([torch.relu(network.makes(image)) for image in images()]).double()
    taps = 3 * reads.kernel_size[0] * reads.kernel_size[1]
    each = torch.eye(taps, dtype=torch.float64).view(taps, 3, *reads.kernel_size).transpose(0, 1)  # one tap a channel
    of_taps = F.conv_transpose2d(made[:, [0, 2, 3]], each, None, reads.stride, reads.padding, reads.output_padding)
    read = torch.cat([of_taps, torch.ones_like(of_taps[:, :1])], dim=1).movedim(1, -1).flatten(0, 2)
    wanted = reads.double()(made).movedim(1, -1).flatten(0, 2)
    best = torch.linalg.lstsq(read, wanted).solution
    assert torch.allclose(changed.weight[[0, 2, 3]].double(), best[:-1].view(3, *reads.kernel_size, 3).movedim(3, 1),
                          atol=2e-3)  # fmt: skip
    assert torch.allclose(changed.bias.double(), best[-1], atol=2e-3)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2)),
        nn.Conv2d(2, 3, (4, 3), padding="valid"),
        nn.Conv2d(2, 3, (3, 1), stride=2, padding=(1, 0), dilation=(2, 1), bias=False),
        nn.ConvTranspose2d(2, 3, 2, 2),
        nn.ConvTranspose2d(2, 3, 4, 2, 1),
        nn.ConvTranspose2d(2, 3, 4, 2, 3),
        nn.ConvTranspose2d(2, 3, 3, 2, 1, output_padding=1, bias=False),
        nn.ConvTranspose2d(2, 3, 3, 1, 1),
        nn.ConvTranspose2d(2, 3, 3, 2, 1, dilation=2),
        nn.ConvTranspose2d(2, 3, (2, 5), (3, 2), (0, 2), output_padding=(2, 1)),
    ],
    ids=str,
)
def test_a_layer_is_its_matrices_times_patches(layer: nn.Module) -> None:
    """The products of all views are the layer's output; where no kernel place reaches is the bias."""
    torch.manual_seed(4)
    image = torch.rand(2, 2, 7, 6)
    output = layer(image).detach()
    made = torch.full_like(output, float("nan"))
    for view in readers.views(layer):
        rows = readers.patches(layer, view, image, output.shape[2:])
        product = (rows.double() @ readers.matrix(layer, view).T).float()  # [N * places, out * phases]
        if isinstance(layer, nn.Conv2d):
            made = product.view(2, *output.shape[2:], -1).permute(0, 3, 1, 2)
            continue
        (down, along), phases = layer.stride, view.phases
        high, wide = (min(-(-(output.shape[2 + a] - p[a]) // layer.stride[a]) for p in phases) for a in (0, 1))
        product = product.view(2, high, wide, 3, len(phases)).permute(0, 3, 4, 1, 2)
        for number, (p, q) in enumerate(phases):
            places = made[:, :, p::down, q::along]
            places[:, :, :high, :wide] = product[:, :, number]
            assert places[:, :, high + 1 :].numel() == places[:, :, :, wide + 1 :].numel() == 0
            places[:, :, high:], places[:, :, :, wide:] = (
                output[:, :, p::down, q::along][:, :, high:],
                output[:, :, p::down, q::along][:, :, :, wide:],
            )
    bare = torch.isnan(made)
    constant = torch.zeros_like(output) if layer.bias is None else layer.bias.detach()[:, None, None].expand_as(output)
    assert not bare.all()
    assert torch.equal(output[bare], constant[bare])
    assert torch.allclose(torch.where(bare, output, made), output, atol=1e-5)
    summed = sum(readers.by_row(layer, view, output).sum() for view in readers.views(layer))
    assert torch.isclose(summed, output[~bare].sum(), atol=1e-3)


def test_the_weakest_channels_are_those_that_a_search_of_all_pairs_finds() -> None:
    torch.manual_seed(2)
    network = Chain(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 3, 1)).eval()
    groups = find_groups(network, images()[0][:1])
    (group,) = groups.groups
    known = moments(network, groups, pairs(network))

    def remains(gone: tuple[int, ...]) -> float:
        return damage(
            network, remove(compensated(network, groups, {group.name: gone}, known), groups, {group.name: gone})
        )

    first = weakest(network, groups, known, {group.name: 1})[group.name]
    assert remains(first) == min(remains((channel,)) for channel in range(5))
    pair = weakest(network, groups, known, {group.name: 2})[group.name]
    with_first = [gone for gone in itertools.combinations(range(5), 2) if first[0] in gone]
    assert remains(pair) == min(remains(gone) for gone in with_first)


def test_a_saliency_is_the_change_of_the_output_where_nothing_lies_behind_the_reader() -> None:
    torch.manual_seed(2)
    for reads in (
        nn.Conv2d(5, 3, 3, padding=1),
        nn.ConvTranspose2d(5, 3, 2, 2, bias=False),
        nn.ConvTranspose2d(5, 3, 4, 2, 1, bias=False),
    ):
        network = Chain(nn.Conv2d(3, 5, 1), reads).eval()
        groups = find_groups(network, images()[0][:1])
        (group,) = groups.groups
        known = moments(network, groups, pairs(network))
        alone = saliencies(network, groups, known, {})[group.name]
        for channel in range(5):
            gone = {group.name: (channel,)}
            small = remove(compensated(network, groups, gone, known), groups, gone)
            assert alone[channel] == pytest.approx(damage(network, small) / len(images()), rel=1e-3, abs=1e-8)


@pytest.mark.parametrize(
    ("off", "reach"),
    [
        ((1.0, -1.0), (2.0, 2.0)),  # (1 - 3)² and (2 - 4)², for each of two output values
        ((0.1, 5.0), (8.0, 18.0)),  # (1 + 3)² and (2 + 4)²: how far the output is off doesn't count
        ((-1.0, 0.0), (0.5, 2.0)),  # what is right already has no slope
    ],
)
def test_a_row_reaches_as_far_as_the_loss_depends_on_it(off: tuple[float, float], reach: tuple[float, float]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1, bias=False)).eval()
    with torch.no_grad():
        network[2].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, :, None, None])
    groups = find_groups(network, images()[0][:1])
    found = [(image, network(image).detach() - torch.tensor(off)[:, None, None]) for image in images()]
    known = moments(network, groups, found)
    assert known["1"][0].reach.tolist() == pytest.approx(reach)


def test_saliencies_of_different_layers_can_be_compared() -> None:
    """A branch that reaches the output a thousand times less has saliencies a million times smaller."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.makes, self.reads = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
            self.last = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, loud: float = 1.0) -> Tensor:
            return loud * self.last(self.reads(torch.relu(self.makes(x))))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = Branches()
            self.two = copy.deepcopy(self.one)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) + self.two(x, 1e-3)

    torch.manual_seed(3)
    network = Both().eval()
    groups = find_groups(network, images()[0][:1])
    known = moments(network, groups, pairs(network))
    found = saliencies(network, groups, known, {group.name: 3 for group in groups.groups})
    for loud, faint in zip(found["one.makes"], found["two.makes"], strict=True):
        assert faint == pytest.approx(1e-6 * loud, rel=1e-3)


def test_a_channel_that_could_stand_in_for_one_that_went_counts_for_more() -> None:
    torch.manual_seed(0)
    network = Chain(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)).eval()
    with torch.no_grad():
        network.makes.weight.abs_(), network.makes.bias.abs_()
        network.makes.weight[2], network.makes.bias[2] = 2 * network.makes.weight[0], 2 * network.makes.bias[0]
    groups = find_groups(network, images()[0][:1])
    known = moments(network, groups, pairs(network))
    name = groups.groups[0].name
    alone = saliencies(network, groups, known, {})[name]
    after = saliencies(network, groups, known, {name: 1})[name]
    assert max(alone[0], alone[2], min(after[0], after[2])) < 1e-6
    assert max(after[0], after[2]) > 1e-4
    assert sorted(after) == sorted(saliencies(network, groups, known, {name: 1})[name])


@pytest.mark.parametrize(
    ("name", "args", "channels"), [("edsr", {"blocks": 2, "channels": 8}, 3), ("sid", {"base": 4}, 4)]
)
def test_coupled_networks_lose_less_than_by_magnitude(name: str, args: dict, channels: int) -> None:
    torch.manual_seed(5)
    network = networks.build(name, args).eval()
    generator = torch.Generator().manual_seed(1)
    batches = [torch.rand(2, channels, 32, 32, generator=generator) for _ in range(3)]
    groups = find_groups(network, batches[0][:1])
    known = moments(network, groups, pairs(network, batches))
    counts = {group.name: group.channels // 4 for group in groups.groups if group.channels >= 4}
    chosen = weakest(network, groups, known, counts)
    assert {group: len(gone) for group, gone in chosen.items()} == counts

    def lost(removed: removal.Removed, made_up: bool) -> float:
        start = compensated(network, groups, removed, known) if made_up else network
        small = remove(start, groups, removed)
        with torch.no_grad():
            return float(sum((small(batch) - network(batch)).square().mean() for batch in batches))

    first = {group: tuple(range(number)) for group, number in counts.items()}
    assert lost(chosen, True) < 0.7 * lost(chosen, False)
    assert lost(chosen, True) < 0.7 * lost(first, True)
    assert lost(first, True) < 0.9 * lost(first, False)


def test_layers_that_are_not_read_as_patches_stay_as_they_are() -> None:
    class LastAxis(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    network = Chain(nn.Conv2d(3, 4, 1), LastAxis()).eval()
    groups = find_groups(network, images()[0][:1])
    known = moments(network, groups, pairs(network))
    assert known == {}
    changed = compensated(network, groups, {groups.groups[0].name: (0,)}, known)
    assert torch.equal(changed.reads.linear.weight, network.reads.linear.weight)
    assert weakest(network, groups, known, {groups.groups[0].name: 1}) == {}
