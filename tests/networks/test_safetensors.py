"""Weights in a file of safetensors, by the optional package of that name (here one that stands for it)."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline import networks
from pipeline.errors import UserError
from pipeline.networks.pretrained import load_weights, read_state

ARGS = {"scale": 2, "blocks": 1, "channels": 4}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, nn.Module]:
    """A file and what is in it; the package that stands for safetensors reads what torch has written."""

    def load(packed: bytes) -> dict[str, torch.Tensor]:
        return torch.load(io.BytesIO(packed), weights_only=True)

    monkeypatch.setitem(sys.modules, "safetensors.torch", SimpleNamespace(load=load))
    network = networks.build("edsr", ARGS)
    state = {f"module.{key}": value for key, value in network.half().state_dict().items()}
    torch.save(state, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", network.float()


def test_a_name_in_capitals_is_one_of_such_a_file_too(weights: tuple[Path, nn.Module]) -> None:
    path, network = weights
    path = path.rename(path.with_suffix(".SAFETENSORS"))
    assert read_state(path).keys() == network.state_dict().keys()


def test_its_tensors_are_put_into_the_network_without_what_wrappers_put_before_their_names(
    weights: tuple[Path, nn.Module],
) -> None:
    path, network = weights
    loaded = networks.build("edsr", ARGS)
    assert load_weights(path, loaded, "edsr") == "keys of the network itself"
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert read_state(path).keys() == network.state_dict().keys()


def test_one_that_is_cut_short_is_refused(weights: tuple[Path, nn.Module]) -> None:
    path, network = weights
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"weights\.safetensors isn't a whole file of safetensors: "):
        load_weights(path, network, "edsr")


def test_without_the_package_one_sentence_says_how_to_get_it(
    weights: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, network = weights
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"weights\.safetensors can't be read: `pip install safetensors` installs"):
        load_weights(path, network, "edsr")
