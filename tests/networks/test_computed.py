"""Networks under spectral norm and of several branches are built plain, and files of them as they were trained load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from removals import assert_equals_mask
from topologies import conv
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm

from pipeline.errors import UserError
from pipeline.networks import build, checkpoint, folded
from pipeline.networks.folded import fold
from pipeline.networks.pretrained import load_weights
from pipeline.pruner.arguments import built
from pipeline.pruning.coupling import find_groups
from pipeline.pruning.removal import kept_indices, remove

IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
NAME = "topologies:computed"
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Branches(nn.Module):
    """A 3x3 and a 1x1 convolution and a skip, each with its batch norm, as in RepVGG."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.large = nn.Sequential(conv(inputs, outputs, 3, bias=False), nn.BatchNorm2d(outputs))
        self.small = nn.Sequential(conv(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.BatchNorm2d(inputs) if inputs == outputs else None
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "plain"):
            return self.act(self.plain(x))
        return self.act(self.large(x) + self.small(x) + (0 if self.skip is None else self.skip(x)))

    def merge(self) -> None:
        if hasattr(self, "plain"):
            return
        inputs, outputs = self.large[0].in_channels, self.large[0].out_channels
        parts = [(self.large[0].weight, self.large[1]), (F.pad(self.small[0].weight, [1] * 4), self.small[1])]
        if self.skip is not None:
            parts.append((F.pad(torch.eye(inputs)[..., None, None], [1] * 4), self.skip))
        self.plain = conv(inputs, outputs)
        factors = [norm.weight / (norm.running_var + norm.eps).sqrt() for _, norm in parts]
        shifts = [norm.bias - norm.running_mean * one for (_, norm), one in zip(parts, factors, strict=True)]
        kernels = [kernel * one.view(-1, 1, 1, 1) for (kernel, _), one in zip(parts, factors, strict=True)]
        self.plain.weight.data, self.plain.bias.data = sum(kernels), sum(shifts)
        for parameter in self.parameters():
            parameter.detach_()  # as published blocks do: nothing of them would be trained any more
        del self.large, self.small, self.skip


class Deployed(Branches):
    def switch_to_deploy(self) -> None:
        self.merge()


class Reparameterized(Branches):
    def reparameterize(self) -> None:
        self.merge()


class Container(nn.Sequential):
    def switch_to_deploy(self) -> None:
        for block in self:
            block.switch_to_deploy()


class Computed(nn.Module):
    """Two convolutions in a row, which evaluation mode computes by one kernel each time, as in ECBSR."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = conv(inputs, 5, 1, bias=False), conv(5, outputs)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.act(self.second(self.first(x)))
        return self.act(F.conv2d(x, *self.rep_params(), padding=1))

    def rep_params(self) -> tuple[Tensor, Tensor]:
        kernel = torch.zeros_like(self.second.weight[:, :1]).new_zeros(())  # keeps the type
        kernel = kernel + F.conv2d(self.second.weight, self.first.weight.permute(1, 0, 2, 3))
        return kernel, self.second.bias


class Written(Computed):
    """Evaluation mode writes the kernel into a convolution of its own each time, as in SPAN."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.has_relu = inputs == 3
        self.eval_conv = conv(inputs, outputs).requires_grad_(False)
        del self.act

    def update_params(self) -> None:
        self.eval_conv.weight.data, self.eval_conv.bias.data = (one.detach() for one in Computed.rep_params(self))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            made = self.second(self.first(x))
        else:
            self.update_params()
            made = self.eval_conv(x)
        return F.leaky_relu(made, 0.05) if self.has_relu else made

    rep_params = None


class Wrong(Deployed):
    """A method that forgets the statistics: right for a network that isn't trained yet."""

    def merge(self) -> None:
        for norm in self.large[1], self.small[1], self.skip:
            if norm is not None:
                norm.reset_running_stats()
        super().merge()


class Flagged(Branches):
    """A method that changes no layer."""

    def switch_to_deploy(self) -> None:
        self.deployed = True


class Sampling(Branches):
    """As in a variational autoencoder."""

    def reparameterize(self, mean: Tensor, spread: Tensor) -> Tensor:
        raise AssertionError


def normed(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(wrap(conv(3, 6)), nn.ReLU(), wrap(conv(6, 6)), nn.ReLU(), conv(6, 3))


def branched(kind: type[nn.Module], around: type[nn.Module] = nn.Sequential) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(around(kind(3, 6), kind(6, 6)), conv(6, 3))


def trained(make: Callable[[], nn.Module]) -> nn.Module:
    """With statistics, estimates and weights as a training leaves them."""
    torch.manual_seed(0)
    network = make()
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(0.2 * torch.randn(tensor.shape))
        for _ in range(3):
            network(3 * torch.rand(4, 3, 8, 8) - 1)
    return network.eval()


CASES = {
    "old spectral norm": (normed(spectral_norm), ["0", "2"], "spectral norm of 2 kernels is folded into them"),
    "spectral norm": (
        normed(parametrizations.spectral_norm), ["0", "2"], "spectral norm of 2 kernels is folded into them",
    ),
    "orthogonal": (
        normed(parametrizations.orthogonal), ["0", "2"],
        "parametrization _Orthogonal of 2 kernels is folded into them",
    ),
    "RepVGG": (
        branched(Deployed), ["0.0.plain", "0.1.plain"],
        "branches of 2 blocks are folded into plain kernels, as in evaluation mode",
    ),
    "MobileOne": (
        branched(Reparameterized), ["0.0.plain", "0.1.plain"],
        "branches of 2 blocks are folded into plain kernels, as in evaluation mode",
    ),
    "a method of the whole": (
        branched(Deployed, Container), ["0.0.plain", "0.1.plain"],
        "branches of 1 block are folded into plain kernels, as in evaluation mode",
    ),
    "ECBSR": (
        branched(Computed), ["0.0.conv", "0.1.conv"],
        "branches of 2 blocks are folded into plain kernels, as in evaluation mode",
    ),
    "SPAN": (
        branched(Written), ["0.0.eval_conv", "0.1.eval_conv"],
        "branches of 2 blocks are folded into plain kernels, as in evaluation mode",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "groups", "said"), CASES.values(), ids=CASES)
def test_it_is_built_plain_loaded_from_its_file_pruned_and_saved(
    make: Callable[[], nn.Module],
    groups: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("topologies.computed", make, raising=False)
    monkeypatch.setattr(folded, "_SAID", set())
    given = trained(make)
    torch.save(
        {"params": {"module." + key: value for key, value in given.state_dict().items()}}, tmp_path / "given.pth"
    )
    network = build(NAME, {})
    build(NAME, {})
    assert capsys.readouterr().err == f"network '{NAME}': {said}\n"
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())
    assert {key.rpartition(".")[2] for key in network.state_dict()} == {"weight", "bias"}
    assert not any("BatchNorm" in type(module).__name__ for module in network.modules())

    state = torch.random.get_rng_state()
    told = load_weights(tmp_path / "given.pth", network, NAME, {})
    assert told == "keys of the network itself, folded"
    assert torch.equal(torch.random.get_rng_state(), state)
    network.eval()
    with torch.no_grad():
        expected = given(IMAGE)
        assert torch.allclose(network(IMAGE), expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
        assert torch.equal(built(given, None, None)[0](IMAGE), network(IMAGE))  # as Pruner takes it

    coupling = find_groups(network, IMAGE)
    assert [group.name for group in coupling.groups] == groups
    removed = {groups[0]: [1, 4], groups[1]: [0]}
    assert_equals_mask(network, coupling, removed)
    small = remove(network, coupling, removed)
    checkpoint.save(tmp_path / "small.pt", small, NAME, {}, kept_indices(network, coupling, removed))
    for name in (NAME, given, make()):
        assert torch.equal(checkpoint.load(tmp_path / "small.pt", name)[0](IMAGE), small(IMAGE))


@pytest.mark.parametrize("case", ["spectral norm", "old spectral norm", "RepVGG", "ECBSR", "SPAN"])
def test_a_file_of_the_network_before_it_was_folded_is_read_plain(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = CASES[case][0]
    monkeypatch.setattr("topologies.computed", make, raising=False)
    given = trained(make)
    checkpoint.save(tmp_path / "whole.pt", given, NAME, {}, {})
    for name in (NAME, make()):
        network, _ = checkpoint.load(tmp_path / "whole.pt", name)
        assert {key.rpartition(".")[2] for key in network.state_dict()} == {"weight", "bias"}
        assert torch.allclose(network(IMAGE), given(IMAGE), rtol=1e-5, atol=1e-5)
    load_weights(tmp_path / "whole.pt", network, NAME, {})


def test_what_a_file_of_the_network_as_it_was_trained_lacks_is_named_as_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("topologies.computed", branched(Deployed), raising=False)
    state = branched(Deployed)().state_dict()
    del state["0.0.large.0.weight"]
    torch.save(state, tmp_path / "given.pth")
    with pytest.raises(UserError, match=r"missing: 0\.0\.large\.0\.weight \(6, 3, 3, 3\); known are"):
        load_weights(tmp_path / "given.pth", build(NAME, {}), NAME, {})


def test_a_file_of_the_plain_network_loads_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topologies.computed", branched(Deployed), raising=False)
    network, given = build(NAME, {}), trained(branched(Deployed))
    fold("given", given)
    torch.save(given.state_dict(), tmp_path / "given.pth")
    assert load_weights(tmp_path / "given.pth", network, NAME, {}) == "keys of the network itself"


def test_a_block_whose_method_makes_another_one_of_it_stays_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folded, "_SAID", set())
    torch.manual_seed(0)
    network = nn.Sequential(Wrong(3, 6), Deployed(6, 6), Wrong(6, 3))
    fold("mixed", network)
    assert [hasattr(block, "plain") for block in network] == [False, True, False]
    assert capsys.readouterr().err == (
        "network 'mixed': branches of 1 block are folded into plain kernels, as in evaluation mode; 2 blocks with a "
        "method that folds branches stay as they are, since the network can't be tried or computes something else "
        "then (0)\n"
    )


@pytest.mark.parametrize("kind", [Sampling, Flagged])
def test_a_method_that_takes_arguments_or_makes_nothing_plain_is_not_called(
    kind: type[nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    network = nn.Sequential(kind(3, 3), conv(3, 3))
    fold("another thing", network)
    assert not hasattr(network[0], "plain")
    assert not hasattr(network[0], "deployed")
    assert not capsys.readouterr().err


def test_a_block_that_is_plain_already_is_not_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    network = branched(Deployed)()
    fold("first", network)
    capsys.readouterr()
    fold("second", network)
    assert not capsys.readouterr().err


def test_blocks_that_are_not_trained_stay_so_and_a_layer_in_evaluation_mode_too() -> None:
    network = nn.Sequential(Deployed(3, 4).requires_grad_(False), nn.BatchNorm2d(4).eval(), Deployed(4, 3))
    fold("frozen", network)
    assert [parameter.requires_grad for parameter in network[0].parameters()] == [False] * 3
    assert all(parameter.requires_grad for parameter in network[2].parameters())
    assert network.training
    assert network[0].plain.training
    assert not network[1].training


def test_an_old_spectral_norm_that_was_never_trained_is_estimated_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make() -> nn.Module:
        return nn.Sequential(spectral_norm(conv(16, 32)), spectral_norm(nn.ConvTranspose2d(32, 8, 2)))

    monkeypatch.setattr("topologies.computed", make, raising=False)
    torch.manual_seed(0)
    network = build(NAME, {}).requires_grad_(False)
    assert torch.linalg.matrix_norm(network[0].weight.flatten(1), 2) == pytest.approx(1, abs=0.1)
    assert torch.linalg.matrix_norm(network[1].weight.transpose(0, 1).flatten(1), 2) == pytest.approx(1, abs=0.1)


def test_an_old_spectral_norm_that_was_trained_is_folded_as_it_is_evaluated() -> None:
    network = trained(normed(spectral_norm))
    with torch.no_grad():
        network[0].weight_orig.add_(0.01 * torch.randn(6, 3, 3, 3))  # as the last step leaves it
    expected = network(IMAGE)
    fold("last step", network)
    assert torch.equal(network(IMAGE), expected)


class Noisy(nn.Module):
    def forward(self, kernel: Tensor) -> Tensor:
        return kernel + torch.randn(kernel.shape)


class Doubled(nn.Module):
    def forward(self, kernel: Tensor) -> Tensor:
        return 2 * kernel


def test_a_parametrization_that_is_random_stays_and_training_mode_comes_back() -> None:
    network = nn.Sequential(conv(3, 3))
    parametrize.register_parametrization(network[0], "weight", Noisy())
    fold("noisy", network)
    assert parametrize.is_parametrized(network[0])
    assert all(module.training for module in network.modules())


def test_a_kernel_that_another_layer_has_too_is_folded_for_the_parametrized_layer_alone() -> None:
    network = nn.Sequential(conv(3, 3), conv(3, 3))
    network[1].weight = network[0].weight
    before = network[1].weight.clone()
    parametrize.register_parametrization(network[0], "weight", Doubled())
    expected = network(IMAGE)
    fold("tied", network)
    assert torch.equal(network[1].weight, before)
    assert torch.equal(network(IMAGE), expected)


def test_what_is_no_kernel_stays_parametrized() -> None:
    network = nn.Sequential(nn.PReLU(3))
    parametrize.register_parametrization(network[0], "weight", Doubled())
    fold("slope", network)
    assert parametrize.is_parametrized(network[0])
