"""What a channel is worth by each criterion: against numbers by hand, and in whole runs of the method."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_runs import D, run
from torch import Tensor, nn

from pipeline import config
from pipeline.errors import UserError
from pipeline.pruning import coupling, criteria, finetune, importance, prune, rules
from pipeline.pruning.iterations import Iteration
from pipeline.pruning.prune import Current, Setup

FIRST, TRUNK = "body.0.conv1", "head+3"  # groups of the tiny EDSR: one behind a ReLU, one that never is
SECOND = "body.1.conv1"


# Method D by saliency with readers that make up, as the presets have it: MACs at 16x16, alpha, widths of all layers.
GOLDEN = json.loads("""
[
[1603584, 0.0, [8, 8, 8, 8, 8, 8, 32, 3]],
[1308672, 0.3, [8, 4, 8, 4, 8, 8, 32, 3]],
[870912, 0.33, [6, 4, 6, 2, 6, 6, 28, 3]],
[433152, 0.363, [4, 4, 4, 2, 4, 4, 16, 3]]
]
""")


# --- each criterion by hand ---------------------------------------------------------------------------------------


ONE = torch.tensor([[1.0, -2.0], [0.5, 0.5]])  # two channels of a layer, and of one that makes them too
OTHER = torch.tensor([[2.0, 0.0, 4.0], [0.0, 0.0, 0.0]])


def test_l1_and_l2_are_over_the_weights_of_all_coupled_layers() -> None:
    assert criteria.l1([ONE, OTHER]).tolist() == [9.0, 1.0]
    assert criteria.l2([ONE, OTHER]).tolist() == pytest.approx([5.0, 0.5**0.5])  # 1 + 4 + 4 + 16 is 25


def test_taylor_is_squared_for_each_image_and_the_variance_is_over_images() -> None:
    products = torch.tensor([[1.0, 2.0], [-3.0, 2.0]])  # images by channels
    assert criteria.taylor(products).tolist() == [5.0, 4.0]  # (1 + 9) / 2; the sum of images would be 4 and 16
    assert criteria.variance(products).tolist() == [4.0, 0.0]  # always the same: it says nothing


def test_obd_is_half_of_the_mean_squared_gradients_times_squared_weights() -> None:
    squares = [torch.tensor([[2.0, 1.0], [4.0, 8.0]]), torch.tensor([[1.0, 5.0, 0.5], [9.0, 9.0, 9.0]])]
    assert criteria.obd([ONE, OTHER], squares).tolist() == [(2 + 4 + 4 + 8) / 2, (1 + 2) / 2]


def test_apoz_is_the_mean_over_readers_of_values_that_are_not_zero() -> None:
    assert criteria.apoz([torch.tensor([0.25, 1.0]), torch.tensor([0.75, 1.0])]).tolist() == [0.5, 0.0]


def test_random_is_the_same_for_the_same_seed_alone() -> None:
    assert criteria.random(4, 1).tolist() == criteria.random(4, 1).tolist() != criteria.random(4, 2).tolist()


# --- what they look at --------------------------------------------------------------------------------------------


class Sum(nn.Module):
    """Two channels made by two 1×1 layers that are added, behind a ReLU, and read once."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1, bias=False)
        self.reads = nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.reads(torch.relu(self.one(x) + self.two(x)))


def added(zeroed: int | None = None) -> nn.Module:
    torch.manual_seed(4)
    network = Sum()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
        if zeroed is not None:
            for layer in (network.one, network.two):
                layer.weight[zeroed] = 0.0
            network.one.bias[zeroed] = 0.0
    return network


def pairs() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    images = [torch.rand(2, 3, 6, 6, generator=generator) for _ in range(2)]
    return [(image, torch.zeros_like(image)) for image in images]  # the output is above: its error is its mean


def test_products_are_the_first_order_change_of_the_loss_which_is_exact_where_the_network_is_linear() -> None:
    network = added()
    groups = coupling.find_groups(network, torch.zeros(1, 3, 6, 6))
    (group,) = groups.groups
    seen = criteria.measured(network, groups, pairs(), of_loss=True)[group.name]
    assert seen.products.shape == (4, 2)
    for channel in range(2):
        changes = [
            (network(image) - added(channel)(image)).mean().item()
            for batch, _ in pairs() for image in batch.split(1)
        ]  # fmt: skip
        assert seen.products[:, channel].tolist() == pytest.approx(changes, rel=1e-5)


def test_squares_are_the_mean_over_images_of_each_gradient_squared() -> None:
    network = added()
    groups = coupling.find_groups(network, torch.zeros(1, 3, 6, 6))
    seen = criteria.measured(network, groups, pairs(), of_loss=True)[groups.groups[0].name]
    expected = torch.zeros(2, 3)
    for batch, _ in pairs():
        for image in batch.split(1):  # the loss is the mean over 3 × 36 values of Σ reads · w · image
            expected += torch.outer(network.reads.weight.sum(0).flatten(), image.mean(dim=(0, 2, 3))).square() / 9
    kernels = [square for square in seen.squares if square.shape == (2, 3)]
    assert len(kernels) == 2  # and the bias
    for kernel in kernels:
        assert torch.allclose(kernel, expected / 4, rtol=1e-4)


def test_zeros_are_counted_where_a_layer_reads_the_channel() -> None:
    network = added()
    with torch.no_grad():
        network.one.weight[1], network.two.weight[1], network.one.bias[1] = -1.0, 0.0, 1.5  # 0 where R + G + B > 1.5
    groups = coupling.find_groups(network, torch.zeros(1, 3, 6, 6))
    (group,) = groups.groups
    image = torch.zeros(1, 3, 6, 6)
    image[:, :, 0] = 1.0  # one row of six is white
    (share,) = criteria.zero_shares(network, groups, [image])[group.name]
    assert share.tolist() == pytest.approx([0.0, 1 / 6])


def test_a_group_that_is_not_behind_a_relu_has_no_apoz_and_goes_by_magnitude(network: nn.Module, setup: Setup) -> None:
    groups = coupling.find_groups(network, torch.zeros(1, 3, 16, 16))
    found = criteria.scores("apoz", network, groups, setup, {})
    assert FIRST in found
    assert TRUNK not in found
    reference = importance.reference_magnitudes(network, groups)
    channels = {group.name: group.channels for group in groups.groups}
    states = importance.group_states(network, setup.cost(network), groups, reference, channels, "apoz", found)
    trunk = next(group for group in groups.groups if group.name == TRUNK)
    (ranks,) = [state.importances for state in states if state.name == TRUNK]
    magnitudes = importance.relative_magnitudes(network, trunk, reference)
    assert torch.tensor(ranks).argsort().tolist() == magnitudes.argsort().tolist()


# --- how importances become comparable ----------------------------------------------------------------------------


def state(name: str, channels: int, mac: float) -> rules.GroupState:
    return rules.GroupState(name, (1.0,) * channels, channels, mac, 1.0)


SCORES = {"cheap": (3.0, 1.0), "dear": (8.0, 2.0)}


@pytest.mark.parametrize(
    ("criterion", "cheap", "dear"),
    [
        # MACs in order: cheap 1, dear 2, cheap 3, dear 8 by score; by score for each MAC dear 0.5, cheap 1, dear 2,
        # cheap 3; an importance is twice the share of the ten MACs up to a channel's middle
        ("taylor", (1.1, 0.1), (1.6, 0.6)),
        ("mac_taylor", (1.9, 0.9), (1.4, 0.4)),
        ("l1", (1.5, 0.5), (1.5, 0.5)),  # each group by itself
    ],
)
def test_importances_are_ranks_over_all_groups_for_each_mac_or_within_one(
    criterion: Any, cheap: tuple, dear: tuple
) -> None:
    states = [state("cheap", 2, 1.0), state("dear", 2, 4.0)]
    places = importance.ranks(states, SCORES, criterion)
    assert places["cheap"] == pytest.approx(cheap)
    assert places["dear"] == pytest.approx(dear)
    mean = sum(sum(places[one.name]) * one.mac for one in states) / 10
    assert mean == pytest.approx(1.0)


def test_saliency_and_making_up_prune_as_they_always_did(
    network: nn.Module, setup: Setup, settings: config.Settings, tmp_path: Path
) -> None:
    lively = replace(setup, retrain=setup.retrain.model_copy(update={"steps": 30, "lr": 3e-3}))
    presets = {"criterion": "saliency", "reconstruct": True, "threshold_scale": 0.3, "efficiency_power": 0.1}
    log = run(network, lively, settings.model_copy(update=presets), D, tmp_path)
    trace = [[i.mac, round(i.alpha, 4), list(i.widths.values())] for i in log]
    shown = "[\n" + ",\n".join(json.dumps(line) for line in trace) + "\n]"
    assert json.loads(shown) == GOLDEN, f"GOLDEN:\n{shown}"


# --- in the method ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", config.CRITERIA)
def test_the_rules_work_with_every_criterion(
    network: nn.Module, setup: Setup, settings: config.Settings, tmp_path: Path, criterion: Any
) -> None:
    still = replace(setup, retrain=setup.retrain.model_copy(update={"steps": 0}))
    before = copy.deepcopy(network.state_dict())
    changed = settings.model_copy(update={"criterion": criterion, "threshold_scale": 0.5, "efficiency_power": 0.1})
    log = run(network, still, changed, D, tmp_path)
    assert [iteration.verdict for iteration in log] == ["accepted"] * 4
    macs = [iteration.mac for iteration in log]
    assert macs == sorted(set(macs), reverse=True)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    if criterion in criteria.WITHIN:  # alpha 0.5: the quarter below goes of each group
        assert set(log[1].removed.values()) == {2}
        assert len(log[1].removed) == 4


def test_readers_make_up_for_what_goes_by_any_criterion_when_told(
    network: nn.Module, setup: Setup, settings: config.Settings, tmp_path: Path
) -> None:
    still = replace(setup, retrain=setup.retrain.model_copy(update={"steps": 0, "max_iterations": 1}))
    psnr = {}
    for reconstruct in (False, True):
        changed = settings.model_copy(
            update={"criterion": "l1", "threshold_scale": 0.6, "reconstruct": reconstruct, "efficiency_power": 0.0}
        )
        log = run(network, still, changed, D, tmp_path / str(reconstruct))
        psnr[reconstruct] = log[1].psnr_change, log[1].removed, log[1].mac
    plain, made_up = psnr[False], psnr[True]
    assert plain[1:] == made_up[1:]
    assert plain[0] != made_up[0]


@pytest.mark.parametrize("criterion", ["taylor", "l2", "apoz"])
def test_channels_are_given_back_by_the_same_criterion(
    network: nn.Module, setup: Setup, settings: config.Settings, criterion: Any
) -> None:
    groups = coupling.find_groups(network, torch.zeros(1, 3, 16, 16))
    changed = settings.model_copy(update={"criterion": criterion})
    after = Iteration(1, "rejected", "", 1, removed={FIRST: 6})
    _, kept = finetune.partial(network, {}, after, Fraction(1, 2), setup, changed, network)
    found = criteria.scores(criterion, network, groups, setup, {})[FIRST]
    strongest = sorted(sorted(range(8), key=found.__getitem__)[3:])
    assert kept[f"{FIRST}.weight"][0] == strongest


def test_a_part_of_a_cut_is_what_lies_lowest_below_the_thresholds_of_all_groups(
    network: nn.Module, setup: Setup, settings: config.Settings
) -> None:
    """The strongest come back first whatever their group: here 4 of the 8 channels of two groups of equal cost."""
    with torch.no_grad():
        for name, sizes in ((FIRST, (1, 2, 3, 4, 9, 9, 9, 9)), (SECOND, (8, 6, 4, 2, 9, 9, 9, 9))):
            network.get_parameter(f"{name}.weight")[:] = torch.tensor(sizes).view(8, 1, 1, 1) / 5.75
    # against thresholds of 1 and 4: 1, 2, 3, 4 of the first, and 2, 1.5, 1, 0.5 of the second, all over the mean size
    after = Iteration(1, "rejected", "", 1, thresholds={FIRST: 1.0, SECOND: 4.0}, removed={FIRST: 4, SECOND: 4})
    _, kept = finetune.partial(network, {}, after, Fraction(1, 2), setup, settings, network)
    assert kept[f"{FIRST}.weight"][0] == [1, 2, 3, 4, 5, 6, 7]
    assert kept[f"{SECOND}.weight"][0] == [0, 4, 5, 6, 7]


def test_saliency_without_making_up_removes_the_same_channels_and_leaves_the_weights(
    network: nn.Module, setup: Setup, settings: config.Settings, tmp_path: Path
) -> None:
    still = replace(setup, retrain=setup.retrain.model_copy(update={"steps": 0, "max_iterations": 1}))
    removed = {}
    for reconstruct in (False, True):
        changed = settings.model_copy(
            update={"criterion": "saliency", "threshold_scale": 0.3, "reconstruct": reconstruct}
        )
        prune_folder = tmp_path / str(reconstruct)
        log = run(network, still, changed, D, prune_folder)
        small, _ = prune.checkpoint.load(prune_folder / "accepted-001.pt", "edsr")
        removed[reconstruct] = log[1].removed
        whole = {value.item() for value in network.body[1].conv2.weight.flatten()}
        kept = {value.item() for value in small.body[1].conv2.weight.flatten()}
        assert (kept <= whole) is not reconstruct
    assert removed[False] == removed[True]


# --- what is refused ----------------------------------------------------------------------------------------------


class Leaky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.makes, self.reads = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.reads(nn.functional.leaky_relu(self.makes(x), 0.2))


def test_apoz_is_refused_before_any_training_where_no_relu_makes_zeros(
    setup: Setup, settings: config.Settings, tmp_path: Path
) -> None:
    network = Leaky()
    one = replace(setup, train=None)  # training would fail
    with pytest.raises(UserError, match=r"prune.criterion is 'apoz'.* networks.tiny has no channel behind a ReLU"):
        run(network, one, settings.model_copy(update={"criterion": "apoz"}), D, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("criterion", [one for one in config.CRITERIA if one not in ("magnitude", "saliency")])
def test_a_network_without_removable_channels_has_no_scores(criterion: config.Criterion, setup: Setup) -> None:
    network = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))  # one layer: it makes the image
    groups = coupling.find_groups(network, torch.zeros(1, 3, 8, 8))
    assert criteria.scores(criterion, network, groups, setup, {}) == {}


def test_apoz_is_no_matter_where_nothing_can_be_removed(setup: Setup) -> None:
    network = nn.Conv2d(3, 3, 1)
    groups = coupling.find_groups(network, torch.zeros(1, 3, 8, 8))
    criteria.check("apoz", network, groups, torch.zeros(1, 3, 8, 8), "tiny")
    assert Current(network, groups, {}).lineage == 0
