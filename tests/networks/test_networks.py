"""The two networks are the published ones, take any size, and are built by name with checked arguments."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import checks, config
from pipeline.errors import UserError
from pipeline.networks import PAPER_ARGS, PAPER_SIZE, build, input_channels
from pipeline.networks.edsr import EDSR
from pipeline.networks.sid import SID


def parameters(network: nn.Module) -> int:
    return sum(tensor.numel() for tensor in network.parameters())


def test_published_sizes_have_the_published_number_of_parameters() -> None:
    assert parameters(build("edsr", PAPER_ARGS["edsr"])) == 1_369_859
    assert parameters(build("sid", PAPER_ARGS["sid"])) == 7_760_268
    assert parameters(EDSR()) == 1_369_859
    assert parameters(SID()) == 7_760_268


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_edsr_enlarges_by_its_scale(scale: int) -> None:
    assert EDSR(scale, blocks=1, channels=4)(torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)


def test_edsr_subtracts_the_mean_at_the_start_and_adds_it_at_the_end() -> None:
    network = EDSR(blocks=1, channels=4)
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    seen: list[torch.Tensor] = []
    network.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    for tensor in network.parameters():
        nn.init.zeros_(tensor)
    result = network(torch.ones(1, 3, 4, 4))
    assert torch.equal(seen[0], (1 - mean).expand(1, 3, 4, 4))
    assert torch.equal(result, mean.expand(1, 3, 8, 8))


def test_edsr_mean_is_saved_but_not_trained() -> None:
    network = EDSR(blocks=1, channels=4)
    assert "mean" in network.state_dict()
    assert "mean" not in dict(network.named_parameters())


def test_edsr_adds_every_residual_and_the_long_skip() -> None:
    network = EDSR(blocks=3, channels=4).double()
    # Blocks that add nothing and a body end that gives nothing leave the head's output: only skips carry it on.
    for module in (*(block.conv2 for block in network.body), network.body_end):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    x = torch.rand(1, 3, 6, 5, dtype=torch.float64)
    expected = network.tail(network.upsample(network.head(x - network.mean))) + network.mean
    assert torch.equal(network(x), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (16, 16), (17, 31), (33, 18)])
def test_sid_takes_any_height_and_width(height: int, width: int) -> None:
    assert SID(2)(torch.rand(1, 4, height, width)).shape == (1, 3, 2 * height, 2 * width)


def test_sid_skips_follow_the_upsampled_map() -> None:
    network = SID(2)
    seen: list[torch.Tensor] = []
    network.upsample[3].register_forward_hook(lambda _, __, result: seen.append(result))
    network.encoder[0].register_forward_hook(lambda _, __, result: seen.append(result))
    network.decoder[3].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    network(torch.rand(1, 4, 7, 5))
    skip, upsampled, joined = seen
    assert torch.equal(joined, torch.cat([upsampled[:, :, :7, :5], skip], dim=1))


def test_sid_output_is_linear() -> None:
    network = SID(2)
    nn.init.zeros_(network.tail.weight)
    nn.init.constant_(network.tail.bias, -1.5)
    assert torch.equal(network(torch.rand(1, 4, 4, 4)), torch.full((1, 3, 8, 8), -1.5))


def test_sid_starts_as_published() -> None:
    network = SID(16)
    up = torch.cat([layer.weight.detach().flatten() for layer in network.upsample])
    # A normal distribution cut at two standard deviations keeps 0.880 of its standard deviation.
    assert up.std().item() == pytest.approx(0.880 * 0.02, rel=0.02)
    assert up.abs().max().item() <= 0.04
    inner = network.encoder[3].conv2
    bound = (6 / (2 * 128 * 9)) ** 0.5
    assert inner.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert not inner.bias.any()


@pytest.mark.parametrize(
    ("name", "args", "size"), [("edsr", {"blocks": 2, "channels": 4}, (9, 12)), ("sid", {"base": 2}, (21, 18))]
)
def test_networks_can_be_traced(name: str, args: dict[str, int], size: tuple[int, int]) -> None:
    network = build(name, args).eval()
    image = torch.rand(1, input_channels(name), *size)
    traced = torch.export.export(network, (image,)).module()
    assert torch.allclose(traced(image), network(image), atol=1e-6)


@pytest.mark.parametrize("name", ["edsr", "sid"])
def test_input_channels_and_paper_size_fit_the_network(name: str) -> None:
    convolution = next(module for module in build(name, {}).modules() if isinstance(module, nn.Conv2d))
    assert input_channels(name) == convolution.in_channels
    assert PAPER_SIZE[name] == {"edsr": (1020, 1020), "sid": (1424, 2128)}[name]


@pytest.mark.parametrize(
    ("name", "args", "parts"),
    [
        ("edrs", {}, ["'edrs'", "edsr, sid"]),
        ("a:", {}, ["'a:'", "edsr, sid"]),
        ("edsr", {"block": 3}, ["'edsr'", "'block'", "scale, blocks, channels"]),
        ("sid", {"channels": 3}, ["'sid'", "'channels'", "base, upsample_bias"]),
        ("edsr", {"scale": 5}, ["scale", "from 1 to 4", "5"]),
        ("edsr", {"blocks": 0}, ["blocks", "from 1 to 1024", "0"]),
        ("edsr", {"channels": 8.0}, ["channels", "8.0"]),
        ("sid", {"base": True}, ["base", "True"]),
        ("sid", {"base": "32"}, ["base", "'32'"]),
        ("sid", {"upsample_bias": 1}, ["upsample_bias", "true or false", "1"]),
        ("no_such_package.part:make", {}, ["no_such_package.part:make", "cannot be imported"]),
        ("json:no_such_function", {}, ["'json'", "'no_such_function'"]),
        ("toy:network", {"widths": 3}, ["toy:network", "'widths'", "width"]),
        ("toy:network", {"width": -1}, ["toy:network", "failed", "negative"]),
        ("toy:number", {}, ["toy:number", "torch.nn.Module", "int"]),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(
    name: str, args: dict[str, Any], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "toy", toy_module())
    with pytest.raises(UserError) as caught:
        build(name, args)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []


def test_a_factory_is_imported_and_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "toy", toy_module())
    network = build("toy:network", {"width": 7})
    assert isinstance(network, nn.Conv2d)
    assert network.out_channels == 7
    assert input_channels("toy:network") == 3


def test_names_are_checked_without_importing_torch() -> None:
    code = "import sys, pipeline.networks as n; n.input_channels('sid'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def toy_module() -> ModuleType:
    def network(width: int = 3) -> nn.Module:
        if width < 0:
            raise ValueError("negative width")
        return nn.Conv2d(3, width, 1)

    module = ModuleType("toy")
    module.network = network  # type: ignore[attr-defined]
    module.number = lambda: 3  # type: ignore[attr-defined]
    return module


def test_a_network_that_cant_be_trained_or_answers_otherwise_than_its_task_is_refused() -> None:
    section = config.Network(factory="toy:build", task="restoration", scale=1)
    image = torch.zeros(1, 3, 16, 16)
    checks.check("toy", section, image, torch.nn.Conv2d(3, 3, 1))
    with pytest.raises(
        UserError, match=r"networks\.toy: the network of 'toy:build' has no parameter that can be trained"
    ):
        checks.check("toy", section, image, torch.nn.Identity())
    with pytest.raises(UserError, match=r"networks\.toy: .* but it gives \(1, 4, 16, 16\)"):
        checks.check("toy", section, image, torch.nn.Conv2d(3, 4, 1))


def test_a_factory_that_ends_the_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = ModuleType("toy")
    toy.build = lambda: sys.exit(3)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy", toy)
    with pytest.raises(UserError, match="network factory 'toy:build' failed: SystemExit"):
        build("toy:build", {})


def test_a_network_without_convolutions_is_refused_before_anything_trains() -> None:
    section = config.Network(factory="toy:build", task="restoration", scale=1)
    image = torch.zeros(1, 3, 16, 16)
    linear = torch.nn.Linear(16, 16)  # along the width
    with pytest.raises(UserError, match="'toy:build' has no 2-D convolution: there are no MACs to save"):
        checks.check("toy", section, image, linear)
