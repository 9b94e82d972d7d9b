"""Of a forward that returns several tensors one is trained, judged and pruned for, and the others come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import checks, config, networks
from pipeline.errors import UserError
from pipeline.networks import checkpoint, duplicate, outputs
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.removal import masked, remove

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class Two(nn.Module):
    """An image and a map of its quality, from the same eight channels; the map by a further layer of four."""

    def __init__(self, named: bool = False) -> None:
        super().__init__()
        self.named = named
        self.shared, self.image = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.between, self.map = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.shared(x))
        image, quality = F.pixel_shuffle(self.image(y), 2), self.map(F.relu(self.between(y)))
        return {"quality": quality, "image": image} if self.named else [quality, image]


@pytest.fixture
def two() -> nn.Module:
    torch.manual_seed(0)
    return Two().eval()


@pytest.mark.parametrize(("named", "output"), [(False, 1), (True, "image")])
def test_the_chosen_tensor_is_the_networks_output_and_the_others_come_back(named: bool, output: int | str) -> None:
    network = Two(named)
    names, every = network.state_dict().keys(), network(IMAGE)
    copied = duplicate(outputs.choose(network, output))
    assert (outputs.chosen(copied), copied.state_dict().keys()) == (output, names)
    assert torch.equal(copied(IMAGE), every[output])
    assert type(outputs.all_of(copied)(IMAGE)) is type(every)
    assert outputs.chosen(copied) is None


@pytest.mark.parametrize("output", [2, "image"])
def test_an_output_that_isnt_there_is_refused_before_training(two: nn.Module, output: int | str) -> None:
    section = config.Network(factory=f"{__name__}:Two", task="super_resolution", output=output)
    with pytest.raises(UserError, match=rf"^networks.mine: output is {output!r}, but the forward of Two returns 0, 1"):
        checks.check("mine", section, IMAGE, outputs.choose(two, output))


def test_a_network_of_several_outputs_is_trained_traced_and_cut_by_the_chosen_one(two: nn.Module) -> None:
    section = config.Network(factory=f"{__name__}:Two", task="super_resolution", output=1)
    checks.check("mine", section, IMAGE, outputs.choose(two, 1))
    found = find_groups(two, IMAGE)
    assert {group.name: group.channels for group in found.groups} == {"shared": 8}
    assert "between can't be removed because of an output that isn't the chosen one" in " ".join(found.frozen)
    removed = {"shared": [1, 4, 6]}
    small, reference = remove(two, found, removed), masked(two, found, removed)
    assert small.get_parameter("between.weight").shape == (4, 5, 3, 3)
    for made, expected in zip(outputs.all_of(small)(IMAGE), outputs.all_of(reference)(IMAGE), strict=True):
        assert torch.allclose(made, expected, atol=1e-6)


def test_a_saved_network_is_loaded_with_its_chosen_output(two: nn.Module, tmp_path: Path) -> None:
    name, path = f"{__name__}:Two", tmp_path / "network.pt"
    checkpoint.save(path, outputs.choose(two, 1), name, {}, {}, example=IMAGE)
    image, quality = two(IMAGE), outputs.all_of(duplicate(two))(IMAGE)[0]
    for loaded in (checkpoint.load(path, name)[0], checkpoint.load(path, networks.build(name, {}))[0]):
        assert torch.equal(loaded(IMAGE), image)
        assert torch.equal(outputs.all_of(loaded)(IMAGE)[0], quality)


def test_a_forward_that_returns_several_tensors_in_training_alone_keeps_its_own_tensor() -> None:
    network = outputs.choose(nn.Conv2d(3, 3, 1), 0)
    assert network(IMAGE).shape == (1, 3, 16, 16)
