"""Costs are those of the paper's Table 1 to the last digit, and of hand-computed layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from chains import ROOT, module
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.cost import Cost, channel_saving, main, measure
from pipeline.errors import UserError
from pipeline.networks import checkpoint
from pipeline.networks.edsr import EDSR
from pipeline.networks.sid import SID


@dataclass(frozen=True)
class Slot:
    """Stand-in for the slot of pipeline.coupling."""

    tensor: str
    dim: int
    index: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    slots: tuple[Slot, ...]


def totals(cost: Cost) -> tuple[int, int, int, int]:
    return cost.mac, cost.weights, cost.activations, cost.bw


def test_table_1_edsr_original() -> None:
    # 1020² = 1,040,400 positions. Kernels: 1,728 + 33·36,864 + 147,456 at one position each, 1,728 at four.
    # Activations per position: 3 + 64, 33·128, 64 + 256, 4·(64 + 3), together 4,879.
    cost = measure(EDSR(), (1020, 1020), 3)
    assert totals(cost) == (1_428_061_363_200, 1_367_424, 5_076_111_600, 5_077_479_024)
    assert [figure // unit for figure, unit in zip(totals(cost), (10**9, 10**3, 10**6, 10**6), strict=True)] == [
        1428,
        1367,
        5076,
        5077,
    ]


def test_table_1_edsr_methods_a_b_c_are_286_inner_channels_fewer() -> None:
    network = EDSR()
    removed = [18] * 14 + [17] * 2
    assert sum(removed) == 286
    for block, fewer in zip(network.body, removed, strict=True):
        block.conv1 = nn.Conv2d(64, 64 - fewer, 3, padding=1)
        block.conv2 = nn.Conv2d(64 - fewer, 64, 3, padding=1)
    cost = measure(network, (1020, 1020), 3)
    # Each channel takes 2·64·9 weights and 2 activations per position with it. The printed BW, 4481, is the printed
    # activations; their sum with the weights is 4482.04 M.
    assert totals(cost) == (1_085_278_694_400, 1_037_952, 4_481_002_800, 4_482_040_752)


def test_table_1_sid_original_but_for_seven_activations_a_pixel() -> None:
    # In units of one packed position: 184,832 MACs and 639 activations, of which the encoder has 65,664 and 205, the
    # transposed convolutions 4·2,048 and 90, the decoder 4·27,648 and 300, the last convolution 384 and 44.
    cost = measure(SID(), (1424, 2128), 4)
    assert (cost.mac, cost.activations) == (184_832 * 1424 * 2128, 639 * 1424 * 2128)
    assert totals(cost) == (560_091_234_304, 7_757_312, 1_936_343_808, 1_944_101_120)
    # What the paper prints: MAC 560, weights 7757, activations 1915, BW 1922.
    fewer = 7 * 1424 * 2128
    assert (cost.mac // 10**9, cost.weights // 10**3) == (560, 7757)
    assert ((cost.activations - fewer) // 10**6, (cost.bw - fewer) // 10**6) == (1915, 1922)


@pytest.mark.parametrize(
    ("layer", "size", "expected"),
    [
        # (11 + 4 − 4 − 1)//2 + 1 = 6 rows, (9 + 4 − 4 − 1)//2 + 1 = 5 columns
        (nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2), (11, 9), (216 * 30, 216, 3 * 99 + 8 * 30)),
        (nn.Conv2d(4, 6, (3, 1), groups=2), (5, 7), (36 * 21, 36, 4 * 35 + 6 * 21)),
        (nn.Conv2d(5, 5, 3, padding=1, groups=5), (4, 6), (45 * 24, 45, 2 * 5 * 24)),
        (nn.Conv2d(2, 6, 1, groups=2, bias=False), (3, 3), (6 * 9, 6, 8 * 9)),
        (nn.ConvTranspose2d(4, 3, 2, stride=2), (5, 7), (48 * 35, 48, 4 * 35 + 3 * 140)),
        (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2), (5, 5), (108 * 25, 108, 6 * 25 + 4 * 100)),
        # Padding that runs as an operation of its own does not enlarge the layer's input.
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (4, 5), (54 * 20, 54, 5 * 20)),
        (nn.Conv2d(2, 3, 4, padding="same"), (4, 5), (96 * 20, 96, 5 * 20)),
    ],
)
def test_one_layer_by_hand(layer: nn.Module, size: tuple[int, int], expected: tuple[int, int, int]) -> None:
    channels = layer.in_channels
    cost = measure(nn.Sequential(layer), size, channels)
    assert [found.name for found in cost.layers] == ["0"]
    found = cost.layers[0]
    assert (found.mac, found.weights, found.activations) == expected
    assert found.kind == ("transposed" if isinstance(layer, nn.ConvTranspose2d) else "conv")
    assert (found.in_channels, found.out_channels, found.groups) == (channels, layer.out_channels, layer.groups)
    assert found.bw == expected[1] + expected[2]
    assert found.mac_per_weight == expected[0] / expected[1]


def test_mobilenet_v1_convolutions() -> None:
    # 568,740,352 MACs are quoted with the classifier's 1,024·1,000; its convolutions alone are 0.568 G.
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    width = 32
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for outputs, stride in blocks:
        layers += [nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        width = outputs
    classifier = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000)]
    assert measure(nn.Sequential(*layers, *classifier), (224, 224), 3).mac == 568_740_352 - 1_024_000


class Twice(nn.Module):
    """One module at two sizes, one kernel used as a function, one kernel that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.kernel = nn.Parameter(torch.rand(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.shared(x), 2)
        return F.conv2d(F.conv2d(self.shared(x), self.kernel), 2 * self.kernel)


def test_a_module_called_twice_counts_its_weights_once() -> None:
    shared = measure(Twice(), (4, 6), 3).layers[0]
    assert (shared.name, shared.mac, shared.weights) == ("shared", 81 * 24 + 81 * 6, 81)
    assert shared.activations == 6 * 24 + 6 * 6


def test_convolutions_called_as_functions_count() -> None:
    layers = measure(Twice(), (4, 6), 3).layers
    assert [layer.name for layer in layers] == ["shared", "kernel", "convolution 3"]
    assert [(layer.mac, layer.weights, layer.activations) for layer in layers[1:]] == [(9 * 6, 9, 36)] * 2


def test_a_computed_kernel_goes_by_its_module() -> None:
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 2, 1)), nn.Conv2d(2, 1, 1))
    assert [(layer.name, layer.weights) for layer in measure(network, (2, 2), 3).layers] == [("0", 6), ("1", 2)]


def test_other_convolutions_do_not_count() -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Conv1d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.line(x.flatten(2))

    assert measure(Line(), (4, 4), 3).layers == ()


class Nosy(nn.Module):
    """Remembers every call, in training statistics and in an attribute, and holds a tensor that is not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.calls = 0
        self.offset = torch.ones(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.dropout(self.norm(self.conv(x + self.offset)), training=self.training)


def test_measuring_leaves_the_network_alone() -> None:
    network = Nosy()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    identities = [id(tensor) for tensor in network.parameters()]
    random = torch.get_rng_state()
    with torch.inference_mode():
        assert measure(network, (8, 8), 3).mac == 108 * 36
    assert network.training
    assert network.calls == 0
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [id(tensor) for tensor in network.parameters()] == identities
    assert not network.conv._forward_hooks
    assert network.offset.device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), random)


def test_no_size_is_too_large() -> None:
    # 3·10¹⁰ numbers of input: 120 GB, were it allocated.
    assert measure(EDSR(blocks=1, channels=4), (10**5, 10**5), 3).layers[0].mac == 108 * 10**10


def test_half_and_double_precision_networks_are_measured() -> None:
    for dtype in (torch.float16, torch.float64):
        assert measure(SID(2).to(dtype), (4, 4), 4).weights == measure(SID(2), (4, 4), 4).weights


def test_an_input_that_does_not_fit_is_said_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^cost of EDSR cannot be counted on an input of 4 channels × 8 × 9: .+$"):
        measure(EDSR(blocks=1, channels=4), (8, 9), 4)


def test_saving_of_a_channel_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    cost = measure(network, (5, 5), 3)
    group = Group(
        (Slot("0.weight", 0, ((0,), (1,))), Slot("0.bias", 0, ((0,), (1,))), Slot("2.weight", 1, ((0,), (1,))))
    )
    # 27 weights make the channel, 4 read it; 25 positions.
    assert channel_saving(cost, group) == (pytest.approx(31 * 25), pytest.approx(31))


def test_saving_is_what_removal_saves_in_edsr() -> None:
    network = EDSR(blocks=2, channels=6)
    trunk: list[tuple[str, int]] = [("head.weight", 0), ("body_end.weight", 0), ("upsample.0.weight", 1)]
    trunk += [("body_end.weight", 1)]
    for block in (0, 1):
        trunk += [(f"body.{block}.conv1.weight", 1), (f"body.{block}.conv2.weight", 0)]
    before = measure(network, (7, 5), 3)
    saving = channel_saving(before, Group(tuple(Slot(name, dim, ((2,), (0,))) for name, dim in trunk)))
    kept: checkpoint.Kept = {}
    for name, dim in trunk:
        kept.setdefault(name, {})[dim] = [0, 1, 3, 4, 5]
    for name in ("head.bias", "body_end.bias", "body.0.conv2.bias", "body.1.conv2.bias"):
        kept[name] = {0: [0, 1, 3, 4, 5]}
    checkpoint.resize(network, kept)
    after = measure(network, (7, 5), 3)
    assert saving == (pytest.approx(before.mac - after.mac), pytest.approx(before.weights - after.weights))


def test_saving_upstream_of_a_pixel_shuffle_and_in_grouped_layers() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.PixelShuffle(2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.ConvTranspose2d(4, 8, 2, groups=4),
        nn.Conv2d(8, 2, 1),
    )
    cost = measure(network, (3, 3), 3)
    group = Group(
        (
            Slot("0.weight", 0, ((0, 1, 2, 3),)),
            Slot("2.weight", 0, ((0,),)),
            Slot("2.weight", 0, ((0,),)),  # the same channel as output and as input of a depthwise layer
            Slot("3.weight", 0, ((0,),)),
            Slot("4.weight", 1, ((0, 1),)),
        )
    )
    # Every layer loses a quarter, once.
    assert channel_saving(cost, group) == (pytest.approx(cost.mac / 4), pytest.approx(cost.weights / 4))


def test_the_command_prints_json_of_plain_integers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--network", "edsr", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total"] == {
        "mac": 1_428_061_363_200,
        "weights": 1_367_424,
        "activations": 5_076_111_600,
        "bw": 5_077_479_024,
    }
    assert len(report["layers"]) == 36
    head = report["layers"][0]
    assert head["name"] == "head"
    assert (head["mac"], head["weights"]) == (1728 * 1020**2, 1728)
    assert head["bw"] == head["weights"] + head["activations"] == 1728 + 67 * 1020**2


def test_the_command_prints_a_table_in_the_units_of_table_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--network", "sid"]) == 0
    lines = capsys.readouterr().out.splitlines()
    total = next(line for line in lines if line.startswith("total"))
    # 7,776.404 MB are 4 bytes for each of 1,944.101 M elements; 72,202 MACs for each weight.
    assert total.split()[1:] == ["560.091", "7,757.312", "1,936.344", "1,944.101", "7,776.404", "72,202"]
    assert "activations 1,915.132 M, BW 1,922.889 M" in lines[-1]


def test_the_size_is_height_times_width(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--network", "sid", "--size", "1x3", "--json"]) == 0
    first, *_, last = json.loads(capsys.readouterr().out)["layers"]
    # 1×3 is halved to 1×2, 1×1, 1×1, 1×1: three positions of 1,152 and of 384 weights at the finest level.
    assert (first["mac"], last["mac"]) == (3 * 1152, 3 * 384)
    assert main(["--network", "sid", "--size", "1x3"]) == 0
    assert "input 4 × 1 × 3" in capsys.readouterr().out


def test_the_command_counts_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = EDSR(blocks=1, channels=4)
    kept = {"body.0.conv1.weight": {0: [0, 3]}, "body.0.conv1.bias": {0: [0, 3]}, "body.0.conv2.weight": {1: [0, 3]}}
    checkpoint.resize(network, kept)
    path = tmp_path / "pruned.pt"
    checkpoint.save(path, network, "edsr", {"blocks": 1, "channels": 4}, kept)
    assert main(["--checkpoint", str(path), "--size", "2x2", "--json"]) == 0
    layers = {layer["name"]: layer for layer in json.loads(capsys.readouterr().out)["layers"]}
    assert layers["body.0.conv1"]["mac"] == 2 * 4 * 9 * 4
    assert main(["--checkpoint", str(path), "--network", "sid"]) == 2
    assert capsys.readouterr().err == f"{path} holds a checkpoint of 'edsr', but 'sid' is asked for\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "--network"),
        (["--network", "vdsr"], "'vdsr'"),
        (["--network", "edsr", "--size", "1020"], "'1020'"),
        (["--network", "edsr", "--size", "0x5"], "'0x5'"),
        (["--network", "edsr", "--size", "-4x5"], "--size"),
        (["--network", "edsr", "--depth", "3"], "--depth"),
        (["--network", "edsr", "--size", "999999999x999999999"], "999999999"),
        (["--network", "torch.nn:Identity"], "--size"),
        (["--checkpoint", "no_such_file.pt"], "no_such_file.pt"),
    ],
)
def test_bad_arguments_give_one_sentence_and_status_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert part in captured.err


def test_the_module_runs_as_a_command() -> None:
    done = module(ROOT, "pipeline.cost", "--network", "vdsr")
    assert done.returncode == 2
    assert done.stderr.startswith("unknown network 'vdsr'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),  # the pipe breaks when Python ends, or already when the text is printed
    [("--network edsr --size 64x64", ""), ("--network edsr --size 64x64", "1"), ("--help", "1")],
)
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(arguments: str, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # before anything is written, as `| head -1` may do at any moment
    command = [sys.executable, "-m", "pipeline.cost", *arguments.split()]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
