"""Weight norm is folded into plain kernels when a network is built, and files that hold it load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from topologies import conv
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from pipeline.networks import build, checkpoint, duplicate
from pipeline.networks.folded import fold, folded
from pipeline.networks.pretrained import load_weights
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.removal import kept_indices, remove

IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def spelled(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(wrap(conv(3, 4, bias=False)), nn.ReLU(), wrap(conv(4, 2)), wrap(conv(2, 3))).eval()
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.mul_(1.5)  # a length that isn't the direction's
    return network


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [weight_norm, parametrizations.weight_norm], ids=["old", "new"])
def test_a_network_with_weight_norm_is_built_plain_loaded_from_its_file_pruned_and_saved(
    wrap: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("topologies.spelled", lambda: spelled(wrap), raising=False)
    monkeypatch.setattr("pipeline.networks.folded._SAID", set())
    given = spelled(wrap)
    torch.save({"module." + key: 2 * tensor for key, tensor in given.state_dict().items()}, tmp_path / "given.pth")
    network = build("topologies:spelled", {}).eval()
    build("topologies:spelled", {})
    assert capsys.readouterr().err == "network 'topologies:spelled': weight norm of 3 kernels is folded into them\n"
    assert sorted(network.state_dict()) == ["0.weight", "2.bias", "2.weight", "3.bias", "3.weight"]
    with torch.no_grad():
        assert torch.equal(network(IMAGE), given(IMAGE))
        for tensor in given.parameters():
            tensor.mul_(2)
        load_weights(tmp_path / "given.pth", network, "topologies:spelled")
        assert torch.allclose(network(IMAGE), given(IMAGE), rtol=1e-6, atol=1e-6)
    coupling = find_groups(network, IMAGE)
    assert [group.name for group in coupling.groups] == ["0", "2"]
    assert all(parameter.requires_grad for parameter in network.parameters())
    removed = {"0": [1]}
    small = remove(network, coupling, removed)
    checkpoint.save(tmp_path / "small.pt", small, "topologies:spelled", {}, kept_indices(network, coupling, removed))
    for name in ("topologies:spelled", spelled(wrap)):
        assert torch.equal(checkpoint.load(tmp_path / "small.pt", name)[0](IMAGE), small(IMAGE))


def test_a_copy_that_is_folded_leaves_the_network_that_was_given_as_it_is() -> None:
    given = spelled(parametrizations.weight_norm)
    expected, copied = given(IMAGE), duplicate(given)
    fold("copied", copied)
    assert torch.equal(copied(IMAGE), expected)
    assert torch.equal(given(IMAGE), expected)


def test_a_length_of_3_and_a_direction_of_norm_5_make_a_kernel() -> None:
    state = {"a.weight_g": torch.tensor([[3.0]]), "a.weight_v": torch.tensor([[3.0, 4.0]]), "b_g": torch.ones(1)}
    assert folded(state, {"a.weight", "b"})["a.weight"].tolist() == [[pytest.approx(1.8), pytest.approx(2.4)]]
    assert folded(state, {"a.weight", "b"}).keys() == {"a.weight", "b_g"}


def test_tensors_that_the_network_has_by_these_names_stay() -> None:
    state = {"weight_g": torch.ones(1), "weight_v": torch.ones(1)}
    assert folded(state, {"weight", "weight_g", "weight_v"}) == state


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [weight_norm, parametrizations.weight_norm], ids=["old", "new"])
def test_a_kernel_that_is_not_trained_stays_so(wrap: Callable) -> None:
    network = spelled(wrap).requires_grad_(False)
    fold("frozen", network)
    assert len(network.state_dict()) == 5
    assert not any(parameter.requires_grad for parameter in network.parameters())
