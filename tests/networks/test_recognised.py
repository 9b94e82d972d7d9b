"""A published network is recognised by its file, with the optional package spandrel (here one that stands for it)."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import config, networks
from pipeline.errors import UserError
from pipeline.networks.recognised import recognise


class Wide(nn.Module):
    """As spandrel's: a class that remembers its arguments, one of which no file can hold."""

    def __init__(self, width: int = 4, layer: Any = nn.Conv2d) -> None:
        super().__init__()
        self.hyperparameters = {"width": width, "layer": layer}
        self.conv = layer(3, width, 3)


def architecture(name: str, kernel: int) -> SimpleNamespace:
    def load(state: dict[str, torch.Tensor]) -> SimpleNamespace:
        network = Wide(state["conv.weight"].shape[0])
        if state["conv.weight"].shape[2] != kernel:
            raise ValueError(f"conv.weight has another size than {kernel}")
        network.load_state_dict(state)
        return SimpleNamespace(model=network)

    return SimpleNamespace(
        architecture=SimpleNamespace(name=name, load=load), detect=lambda state: "conv.weight" in state
    )


def install(monkeypatch: pytest.MonkeyPatch, *known: SimpleNamespace) -> None:
    registry = SimpleNamespace(architectures=lambda order: list(known))
    fake = SimpleNamespace(MAIN_REGISTRY=registry, canonicalize_state_dict=lambda state: state)
    monkeypatch.setitem(sys.modules, "spandrel", fake)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(
        {"params_ema": {f"module.{key}": value for key, value in Wide(6).state_dict().items()}}, tmp_path / "w.pth"
    )
    return tmp_path / "w.pth"


def test_architecture_and_arguments_are_those_of_the_file(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, architecture("Narrow", 5), architecture("Wide", 3))
    network, factory, args = recognise(weights)
    assert (factory, args) == (f"{__name__}:Wide", {"width": 6})
    stored = torch.load(weights)["params_ema"]["module.conv.weight"]
    assert torch.equal(network.state_dict()["conv.weight"], stored)
    assert networks.build(factory, args).state_dict()["conv.weight"].shape == stored.shape


def test_the_factory_of_a_file_builds_a_new_network_with_its_weights_each_time(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, architecture("Wide", 3))
    section = config.Network(file=str(weights), task="restoration", scale=1)
    with torch.device("meta"):
        first, second = (networks.build(section.factory, section.args) for _ in range(2))
    stored = torch.load(weights)["params_ema"]["module.conv.weight"]
    for network in (first, second):
        assert torch.equal(network.state_dict()["conv.weight"], stored)
    assert first is not second


def test_a_file_that_two_architectures_fit_is_refused(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, architecture("One", 3), architecture("Other", 3))
    with pytest.raises(UserError, match=r"w\.pth: One and Other fit its tensors; name the factory"):
        recognise(weights)


def test_a_file_that_none_fits_is_refused_with_the_nearest_and_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"conv.weight": torch.zeros(6, 3, 3, 3)}, tmp_path / "w.pth")  # without its bias
    install(monkeypatch, architecture("Narrow", 5), architecture("Wide", 3))
    said = (
        r"none of the 2 architectures of spandrel fits its 1 tensors \(nearest is Narrow: conv.weight has another size "
        r"than 5; also tried: Wide\)"
    )
    with pytest.raises(UserError, match=said):
        recognise(tmp_path / "w.pth")
    install(monkeypatch, architecture("Wide", 3))
    with pytest.raises(UserError, match=r'\(nearest is Wide: .* Missing key\(s\) in state_dict: "conv.bias"'):
        recognise(tmp_path / "w.pth")


def test_what_differs_is_told_in_a_sentence_of_bearable_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {f"layer{number}.weight": torch.zeros(1) for number in range(1000)}
    torch.save(Wide(6).state_dict() | others, tmp_path / "w.pth")
    install(monkeypatch, architecture("Wide", 3))
    with pytest.raises(UserError, match=r"layer0\.weight") as caught:
        recognise(tmp_path / "w.pth")
    assert len(str(caught.value)) < 700


def test_where_no_architecture_knows_the_names_all_that_were_tried_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"other.weight": torch.zeros(6, 3, 3, 3)}, tmp_path / "w.pth")
    install(monkeypatch, architecture("Wide", 3), architecture("Narrow", 5))
    with pytest.raises(UserError, match=r"none knows .*, such as 'other.weight'; tried were Narrow, Wide\)"):
        recognise(tmp_path / "w.pth")


def test_without_spandrel_one_sentence_says_how_to_get_it(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(UserError, match=r"w\.pth: factory is missing.*`pip install spandrel`"):
        recognise(weights)
