"""Normalisations over channels: with `norms`, channels go, and the statistics are those of the channels that stay."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from removals import EXAMPLE, random_removal
from topologies import Frame, Gated, LayerNorm2d, Residual, conv, unsettle
from torch import Tensor, nn

from pipeline import config, cost, records
from pipeline.networks import checkpoint
from pipeline.pruning import analysis, operations, tracing
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.norms import Statistics, over_kept
from pipeline.pruning.removal import Coupling, kept_indices, masked, narrow, remove
from pipeline.schema import read_yaml
from pipeline.training.setup import Setup


class ChannelsLast(nn.Module):
    """A norm of torch's own over channels, which it takes in the last dimension."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Written(nn.Module):
    """A norm written out."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(x)


class Functional(nn.Module):
    """ConvNeXt's layer norm (Liu et al., CVPR 2022): its shape is an attribute of the module."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.normalized_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, 1e-9)
        return x.permute(0, 3, 1, 2)


def deviation(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, unbiased=False)


def both_at_once(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 1, keepdim=True, unbiased=False)
    return (x - mean) / variance.sqrt()


def root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim=1, keepdim=True))


# Channels 1, 3 and 8, of which the last goes: the mean of 1 and 3 is 2 and their standard deviation 1, so they become
# -1 and 1, and the weights 1 and 10 make 9 of them. Their root mean square is the square root of 5.
NORMS = {
    "written out": (LayerNorm2d(3), 9.0),
    "by standard deviation": (Written(deviation), 9.0),
    "by variance and mean at once": (Written(both_at_once), 9.0),
    "layer norm": (ChannelsLast(nn.LayerNorm(3, eps=1e-9)), 9.0),
    "layer norm whose shape is an attribute": (Functional(3), 9.0),
    "group norm of one group": (nn.GroupNorm(1, 3, eps=1e-9), 9.0),
    "root mean square": (ChannelsLast(nn.RMSNorm(3, eps=1e-9)), 31 / 5**0.5),
    "root mean square, written out": (Written(root_mean_square), 31 / 5**0.5),
}


def normed(part: nn.Module) -> nn.Sequential:
    """Makes of an image of ones channels 1, 3 and 8, normalises them, and adds them up with weights 1, 10 and 100."""
    first, last = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
    network = nn.Sequential(first, part, last).eval()
    with torch.no_grad():
        first.weight.copy_(torch.diag(torch.tensor([1.0, 3.0, 8.0]))[:, :, None, None])
        last.weight.copy_(torch.tensor([1.0, 10.0, 100.0]).expand(3, 3)[:, :, None, None])
    return network


@pytest.mark.parametrize(("part", "value"), NORMS.values(), ids=NORMS)
def test_the_statistics_of_a_norm_are_those_of_the_channels_that_stay(part: nn.Module, value: float) -> None:
    network = normed(part)
    coupling = find_groups(network, EXAMPLE, norms=True)
    assert [(group.name, group.channels, group.exact) for group in coupling.groups] == [("0", 3, False)]
    assert coupling.frozen == ()
    small = remove(network, coupling, {"0": [2]})
    with torch.no_grad():
        assert small(torch.ones(1, 3, 2, 2)) == pytest.approx(torch.full((1, 3, 2, 2), value).numpy(), rel=1e-5)
    assert all(tensor.shape in ((2,), (2, 3, 1, 1), (3, 2, 1, 1)) for tensor in small.parameters())
    if isinstance(part, ChannelsLast):
        assert small[1].norm.normalized_shape == (2,)


def test_a_group_norm_loses_the_channels_in_one_place_of_each_of_its_groups() -> None:
    # Groups (1, 3, 8) and (1, 5, 9) without the 8 and the 9: each becomes (-1, 1).
    first, norm, last = nn.Conv2d(3, 6, 1, bias=False), nn.GroupNorm(2, 6, eps=1e-9), nn.Conv2d(6, 3, 1, bias=False)
    network = nn.Sequential(first, norm, last).eval()
    with torch.no_grad():
        first.weight.copy_(torch.tensor([1.0, 3.0, 8.0, 1.0, 5.0, 9.0])[:, None, None, None].expand(6, 3, 1, 1) / 3)
        last.weight.copy_(torch.tensor([1.0, 10.0, 100.0, 2.0, 20.0, 200.0]).expand(3, 6)[:, :, None, None])
    (group,) = find_groups(network, EXAMPLE, norms=True).groups
    assert (group.channels, group.exact, group.slots[0].index) == (3, False, ((0, 3), (1, 4), (2, 5)))
    small = remove(network, Coupling((group,), ()), {"0": [2]})
    assert (small[1].num_groups, small[1].num_channels, small[1].weight.shape) == (2, 4, (4,))
    with torch.no_grad():
        assert small(torch.ones(1, 3, 2, 2)).flatten() == pytest.approx([-1 + 10 - 2 + 20] * 12, rel=1e-5)


@pytest.mark.parametrize(
    "part", [nn.GroupNorm(1, 3), ChannelsLast(nn.LayerNorm(3)), LayerNorm2d(3)], ids=["group", "last", "written"]
)
def test_channels_before_a_norm_stay_whole_unless_norms_are_asked_for(part: nn.Module) -> None:
    coupling = find_groups(normed(part), EXAMPLE)
    assert coupling.groups == ()
    named = "the operation mean in 1" if isinstance(part, LayerNorm2d) else "the normalisation"
    assert f"because of {named}" in coupling.frozen[0]
    assert "(prune.norms: true may open them)" in coupling.frozen[0]


@pytest.mark.parametrize(
    ("named", "norms"),
    [("the operation amax in ", False), ("the operation amax in ", True), ("the operation mean in ", True)],
)
def test_the_norms_parameter_is_named_only_where_it_may_open_channels(named: str, norms: bool) -> None:
    way = {
        "the operation amax in ": lambda x: x / (1 + x.amax(1, keepdim=True)),
        "the operation mean in ": lambda x: x / (1 + x.unflatten(1, (2, 3)).mean((1, 2)).abs()[:, None]),
    }[named]
    coupling = find_groups(Frame(6, Written(way)).eval(), EXAMPLE, norms=norms)
    assert named in coupling.frozen[0]
    assert "prune.norms" not in coupling.frozen[0]


class Backbone(nn.Module):
    """NAFNet's shape (Chen et al., ECCV 2022): norms on the trunk, gated blocks, and two branches under one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.side = conv(3, 6), conv(3, 4)
        self.block = Residual(LayerNorm2d(6), Gated(6, 4), conv(6, 6))
        self.both, self.merge, self.leave = Functional(10), conv(10, 5), conv(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.enter(x))
        return self.leave(self.merge(self.both(torch.cat([y, self.side(x)], 1))))


def test_whatever_a_norm_ties_together_is_pruned_saved_and_pruned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = unsettle(Backbone())
    coupling = find_groups(network, EXAMPLE, norms=True)
    assert coupling.frozen == ()
    inexact = {group.name: group.producers for group in coupling.groups if not group.exact}
    assert inexact == {"enter+2": ("enter", "block.body.1.project", "block.body.2"), "side": ("side",)}
    producers = {layer for group in coupling.groups for layer in group.producers}
    assert {name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)} - producers == {"leave"}
    removed = random_removal(coupling, random.Random(1), leave=2)
    small = remove(network, coupling, removed)
    narrowed = narrow(coupling, removed)
    assert narrowed.groups == find_groups(small, EXAMPLE, norms=True).groups
    monkeypatch.setattr("topologies.backbone", Backbone, raising=False)
    checkpoint.save(tmp_path / "one.pt", small, "topologies:backbone", {}, kept_indices(network, coupling, removed))
    loaded, _ = checkpoint.load(tmp_path / "one.pt", "topologies:backbone")
    assert torch.equal(loaded(EXAMPLE + 0.5), small(EXAMPLE + 0.5))


def test_the_reference_leaves_removed_channels_out_of_statistics_and_nothing_else() -> None:
    network = normed(LayerNorm2d(3))
    coupling = find_groups(network, EXAMPLE, norms=True)
    labels = tracing.follow(network, EXAMPLE, norms=True)
    assert labels.calls is not None
    assert [name for name, _ in labels.calls] == ["mean", "mean"]
    over = labels.calls[0][1]
    assert over is not None
    reference = masked(network, coupling, {"0": [2]})
    image = torch.ones(1, 3, 2, 2)
    with torch.no_grad():
        full = reference(image)
        over_kept(reference, Statistics(labels.calls, {"0": over.flatten().tolist()}), {"0": [2]})
        kept = reference(image)
    # Of 1, 3 and 8 the mean is 4 and the variance 26 / 3.
    assert full.flatten() == pytest.approx([(-3 - 10) / (26 / 3) ** 0.5] * 12, rel=1e-5)
    assert kept.flatten() == pytest.approx([9.0] * 12, rel=1e-5)


def test_the_analysis_names_the_groups_whose_norms_change(tmp_path: Path) -> None:
    setup = cast(Setup, SimpleNamespace(cost=lambda net: cost.measure(net, (8, 8), 3), example=lambda net: EXAMPLE))
    analysis.analyze(unsettle(Backbone()), setup, tmp_path / "analyze" / "net", norms=True)
    groups = records.groups(tmp_path, "net")["groups"]
    assert [group["name"] for group in groups if not group.get("exact", True)] == ["enter+2", "side"]
    assert all(group.get("exact") in (None, False) for group in groups)  # files of other networks stay as they were


def test_one_method_that_removes_channels_under_norms_is_enough_for_the_analysis() -> None:
    values = read_yaml(Path(__file__).parents[2] / "presets" / "small.yaml")
    assert not config.checked_params(values, "small").norms("edsr")
    values["methods"]["D"]["networks"] = {"edsr": {"norms": True}}
    params = config.checked_params(values, "small")
    assert (params.norms("edsr"), params.norms("sid")) == (True, False)


def bessel(x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True) * (x.shape[1] / (x.shape[1] - 1))
    return (x - mean) / (variance + 1).sqrt()


def other_at_size(x: Tensor) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    return x if x.shape[2] <= 16 else x / x.var(1, keepdim=True)


@pytest.mark.parametrize(
    "way",
    [
        bessel,
        other_at_size,
        lambda x: (x - x.mean(1, keepdim=True)) * x.shape[1],
        lambda x: x - x.mean(1, keepdim=True) + x.amax(1, keepdim=True),
        lambda x: x - x[:, :2].mean(1, keepdim=True),
    ],
    ids=["count in the variance", "other statistics at another size", "count behind it", "maximum", "two of them"],
)
def test_a_norm_whose_forward_does_more_than_leave_channels_out_stays_whole(way: Callable[[Tensor], Tensor]) -> None:
    coupling = find_groups(Frame(6, Written(way)).eval(), EXAMPLE, norms=True)
    assert coupling.groups == ()
    assert coupling.frozen[0].startswith("channels of enter can't be removed because of ")


@pytest.mark.parametrize("operation", ["flip", "roll"])
def test_a_wrong_label_does_not_pass_as_a_norm_that_shrinks(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The channels arrive at the norm in another order than their labels say."""
    monkeypatch.setitem(operations.HANDLERS, operation, operations.passes)
    turn = {"flip": lambda x: x.flip(1), "roll": lambda x: x.roll(1, 1)}[operation]
    coupling = find_groups(Frame(6, nn.Sequential(Written(turn), LayerNorm2d(6))).eval(), EXAMPLE, norms=True)
    assert coupling.groups == ()
    monkeypatch.undo()
    if operation == "flip":  # whose own handler is right
        coupling = find_groups(Frame(6, nn.Sequential(Written(turn), LayerNorm2d(6))).eval(), EXAMPLE, norms=True)
        assert [group.exact for group in coupling.groups] == [False]
