"""Published weights give the published outputs, and a file that doesn't fit, or would run code, is refused by name."""

from __future__ import annotations

import pickle
import re
import subprocess
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import pytest
import torch
import yaml
from chains import ROOT, stage
from payload import Payload
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import checks
from pipeline.errors import UserError
from pipeline.evaluation.metrics import Quality
from pipeline.networks import build, checkpoint, pretrained
from pipeline.networks.pretrained import load_weights
from pipeline.training.setup import Setup

MEAN = (0.4488, 0.4371, 0.4040)
State = dict[str, Tensor]


def conv(inputs: int, outputs: int, side: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, padding=side // 2)


def upsampler(scale: int, channels: int) -> nn.Sequential:
    """Both publications: one shuffle by 2 or 3, two by 2 for x4."""
    steps: list[nn.Module] = []
    for factor in (2, 2) if scale == 4 else (scale,):
        steps += [conv(channels, channels * factor**2), nn.PixelShuffle(factor)]
    return nn.Sequential(*steps)


class MeanShift(nn.Conv2d):
    def __init__(self, reach: int, sign: int) -> None:
        super().__init__(3, 3, 1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = sign * reach * torch.tensor(MEAN)


class PyTorchBlock(nn.Module):
    def __init__(self, channels: int, scaling: float) -> None:
        super().__init__()
        self.body, self.scaling = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels)), scaling

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scaling * self.body(x)


class EDSRPyTorch(nn.Module):
    """The module of sanghyun-son/EDSR-PyTorch: images in 0..reach, in and out."""

    def __init__(self, scale: int, blocks: int, channels: int, reach: int = 255, scaling: float = 1.0) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(reach, -1), MeanShift(reach, 1)
        self.head = nn.Sequential(conv(3, channels))
        inner = [PyTorchBlock(channels, scaling) for _ in range(blocks)]
        self.body = nn.Sequential(*inner, conv(channels, channels))
        self.tail = nn.Sequential(upsampler(scale, channels), conv(channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(x) + x))


class BasicBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(channels, channels), conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class BasicSR(nn.Module):
    """The module of XPixelGroup/BasicSR: images in 0..1, the layers between at 255 times that."""

    def __init__(self, scale: int, blocks: int, channels: int) -> None:
        super().__init__()
        self.conv_first = conv(3, channels)
        self.body = nn.Sequential(*(BasicBlock(channels) for _ in range(blocks)))
        self.conv_after_body = conv(channels, channels)
        self.upsample = upsampler(scale, channels)
        self.conv_last = conv(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        mean = torch.tensor(MEAN).view(1, 3, 1, 1).to(x)
        x = self.conv_first((x - mean) * 255.0)
        x = x + self.conv_after_body(self.body(x))
        return self.conv_last(self.upsample(x)) / 255.0 + mean


class SIDPort(nn.Module):
    """The ports of lavi135246 (SeeInDark) and cydonia999 (LSID), which shuffles pixels as TensorFlow does."""

    def __init__(self, base: int, lsid: bool, bias: bool) -> None:
        super().__init__()
        self.up, self.last = ("up", "conv10") if lsid else ("upv", "conv10_1")
        self.lsid, wide = lsid, [base * 2**level for level in range(5)]
        for level, (inputs, outputs) in enumerate(zip([4, *wide[:-1]], wide, strict=True), 1):
            self.add_module(f"conv{level}_1", conv(inputs, outputs))
            self.add_module(f"conv{level}_2", conv(outputs, outputs))
        for level, outputs in zip(range(6, 10), wide[-2::-1], strict=True):
            self.add_module(f"{self.up}{level}", nn.ConvTranspose2d(2 * outputs, outputs, 2, stride=2, bias=bias))
            self.add_module(f"conv{level}_1", conv(2 * outputs, outputs))
            self.add_module(f"conv{level}_2", conv(outputs, outputs))
        self.add_module(self.last, conv(base, 12, 1))

    def double(self, x: Tensor, level: int) -> Tensor:  # type: ignore[override]
        for part in (1, 2):
            x = F.leaky_relu(self.get_submodule(f"conv{level}_{part}")(x), 0.2)
        return x

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in range(1, 6):
            x = self.double(F.max_pool2d(x, 2) if level > 1 else x, level)
            skips.append(x)
        for level in range(6, 10):
            x = torch.cat([self.get_submodule(f"{self.up}{level}")(x), skips[9 - level]], 1)
            x = self.double(x, level)
        x = self.get_submodule(self.last)(x)
        if not self.lsid:
            return F.pixel_shuffle(x, 2)
        batch, _, height, width = x.shape
        x = x.view(batch, 2, 2, 3, height, width).permute(0, 3, 4, 1, 5, 2)
        return x.reshape(batch, 3, 2 * height, 2 * width)


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def published(network: nn.Module, path: Path) -> Path:
    return write(path, network.state_dict())


def refusal(path: Path, network: nn.Module, factory: str) -> str:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(path, network, factory)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize(("scale", "reach"), [(2, 255), (3, 255), (4, 255), (2, 1)])
def test_weights_of_edsr_pytorch_give_its_outputs(tmp_path: Path, scale: int, reach: int) -> None:
    theirs = EDSRPyTorch(scale, 3, 6, reach)
    ours = build("edsr", {"scale": scale, "blocks": 3, "channels": 6})
    told = load_weights(published(theirs, tmp_path / "edsr.pt"), ours, "edsr")
    image = torch.rand(2, 3, 7, 9)
    assert torch.allclose(ours(image), theirs(image * reach) / reach, atol=1e-5)
    assert "EDSR-PyTorch" in told
    assert ("255" in told) == (reach == 255)


def test_weights_of_edsr_pytorch_without_its_mean_shifts_are_for_0_to_255(tmp_path: Path) -> None:
    theirs, ours = EDSRPyTorch(2, 2, 6), build("edsr", {"blocks": 2, "channels": 6})
    state = {key: value for key, value in theirs.state_dict().items() if "_mean" not in key}
    load_weights(write(tmp_path / "edsr.pt", state), ours, "edsr")
    image = torch.rand(1, 3, 7, 9)
    assert torch.allclose(ours(image), theirs(image * 255) / 255, atol=1e-5)


def test_the_papers_large_edsr_gets_its_residual_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrained._LARGE == (32, 256)
    monkeypatch.setattr(pretrained, "_LARGE", (3, 6))  # the real one has 160 MB
    theirs, ours = EDSRPyTorch(2, 3, 6, scaling=0.1), build("edsr", {"blocks": 3, "channels": 6})
    assert "residual scale 0.1" in load_weights(published(theirs, tmp_path / "edsr.pt"), ours, "edsr")
    image = torch.rand(1, 3, 7, 9)
    assert torch.allclose(ours(image), theirs(image * 255) / 255, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_weights_of_basicsr_give_its_outputs(tmp_path: Path, scale: int) -> None:
    theirs, ours = BasicSR(scale, 3, 6), build("edsr", {"scale": scale, "blocks": 3, "channels": 6})
    told = load_weights(write(tmp_path / "edsr.pth", {"params": theirs.state_dict()}), ours, "edsr")
    image = torch.rand(2, 3, 7, 9)
    assert torch.allclose(ours(image), theirs(image), atol=1e-5)
    assert "BasicSR" in told


@pytest.mark.parametrize(("lsid", "bias"), [(False, False), (False, True), (True, False), (True, True)])
def test_weights_of_the_ports_of_sid_give_their_outputs(tmp_path: Path, lsid: bool, bias: bool) -> None:
    theirs, ours = SIDPort(2, lsid, bias), build("sid", {"base": 2, "upsample_bias": bias})
    told = load_weights(published(theirs, tmp_path / "sid.pth"), ours, "sid")
    image = torch.rand(2, 4, 32, 16)
    assert torch.allclose(ours(image), theirs(image), atol=1e-5)
    assert ("LSID" if lsid else "SeeInDark") in told


def test_biases_of_zero_in_sids_transposed_convolutions_are_dropped_and_others_are_not(tmp_path: Path) -> None:
    theirs, ours = SIDPort(2, False, True), build("sid", {"base": 2})
    text = refusal(published(theirs, tmp_path / "sid.pth"), ours, "sid")
    assert "unknown: upv6.bias (16,), upv7.bias (8,), upv8.bias (4,) and 1 more" in text
    assert "{base: 2, upsample_bias: true}" in text
    for level in range(6, 10):
        nn.init.zeros_(theirs.get_submodule(f"upv{level}").bias)
    load_weights(published(theirs, tmp_path / "sid.pth"), ours, "sid")
    image = torch.rand(1, 4, 16, 16)
    assert torch.allclose(ours(image), theirs(image), atol=1e-5)


@pytest.mark.parametrize("holder", ["params_ema", "params", "state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_found_where_trainers_put_it(tmp_path: Path, holder: str | None, prefix: str) -> None:
    theirs, ours = build("edsr", {"blocks": 1, "channels": 4}), build("edsr", {"blocks": 1, "channels": 4})
    state = {prefix + key: value for key, value in theirs.state_dict().items()}
    load_weights(write(tmp_path / "a.pt", {holder: state, "epoch": 3} if holder else state), ours, "edsr")
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())


def test_averaged_weights_go_before_the_last_ones(tmp_path: Path) -> None:
    last, averaged, ours = (build("sid", {"base": 1}) for _ in range(3))
    content = {"params": last.state_dict(), "params_ema": averaged.state_dict()}
    load_weights(write(tmp_path / "a.pth", content), ours, "sid")
    assert torch.equal(ours.tail.weight, averaged.tail.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_the_networks(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs, ours = EDSRPyTorch(2, 2, 6), build("edsr", {"blocks": 2, "channels": 6})
    mean = ours.mean.clone()
    load_weights(published(theirs.to(dtype), tmp_path / "half.pt"), ours, "edsr")
    assert {value.dtype for value in ours.state_dict().values()} == {torch.float32}
    assert torch.equal(ours.head.weight, theirs.head[0].weight.float())
    assert torch.equal(ours.head.bias, theirs.head[0].bias.float() / 255)
    assert torch.equal(ours.mean, mean)


def test_a_checkpoint_of_this_project_loads_unless_it_is_pruned(tmp_path: Path) -> None:
    args = {"blocks": 2, "channels": 6}
    theirs, ours = build("edsr", args), build("edsr", args)
    checkpoint.save(tmp_path / "whole.pt", theirs, "edsr", args, {})
    load_weights(tmp_path / "whole.pt", ours, "edsr")
    assert torch.equal(ours.tail.weight, theirs.tail.weight)
    assert "'sid' is asked for" in refusal(tmp_path / "whole.pt", build("sid", {"base": 2}), "sid")
    kept = {"body.1.conv1.weight": {0: [0, 2]}, "body.1.conv1.bias": {0: [0, 2]}, "body.1.conv2.weight": {1: [0, 2]}}
    checkpoint.resize(theirs, kept)
    checkpoint.save(tmp_path / "pruned.pt", theirs, "edsr", args, kept)
    assert "holds a pruned network, but a baseline must be whole" in refusal(tmp_path / "pruned.pt", ours, "edsr")


def test_a_users_network_loads_by_its_own_keys_alone(tmp_path: Path) -> None:
    theirs, ours = (nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), conv(4, 3)) for _ in range(2))
    theirs[1].running_mean.fill_(0.5)
    load_weights(published(theirs, tmp_path / "own.pt"), ours, "toy:network")
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    state = theirs.state_dict()
    del state["2.bias"]
    text = refusal(write(tmp_path / "cut.pt", state), ours, "toy:network")
    assert "missing: 2.bias (3,)" in text
    assert "BasicSR" not in text
    assert "no key of the network 'toy:network'" in refusal(tmp_path / "own.pt", nn.Identity(), "toy:network")


def test_an_upsampler_of_another_scale_is_named_with_the_args_that_would_fit(tmp_path: Path) -> None:
    ours = build("edsr", {"scale": 2, "blocks": 3, "channels": 6})
    text = refusal(published(EDSRPyTorch(4, 3, 6), tmp_path / "x4.pt"), ours, "edsr")
    assert "unknown: tail.0.2.weight (24, 6, 3, 3), tail.0.2.bias (24,)" in text
    assert "missing" not in text
    assert "args seem to be {scale: 4, blocks: 3, channels: 6}" in text
    text = refusal(write(tmp_path / "x3.pt", {"params": BasicSR(3, 3, 6).state_dict()}), ours, "edsr")
    assert "of another shape: upsample.0.weight is (54, 6, 3, 3) where (24, 6, 3, 3) is expected" in text
    assert "args seem to be {scale: 3, blocks: 3, channels: 6}" in text


def test_other_widths_and_depths_are_named_with_the_args_that_would_fit(tmp_path: Path) -> None:
    ours = build("edsr", {"blocks": 4, "channels": 8})
    text = refusal(published(EDSRPyTorch(2, 6, 16), tmp_path / "wide.pt"), ours, "edsr")
    assert re.search(r"of another shape: head\.0\.weight is \(16, .*\) where \(8, .* and \d+ more", text)
    assert "missing: body.4.weight (8, 8, 3, 3), body.4.bias (8,)" in text
    assert "args seem to be {scale: 2, blocks: 6, channels: 16}" in text
    assert "EDSR-PyTorch (… tail.1.bias), BasicSR (… conv_last.bias)" in text
    text = refusal(published(SIDPort(4, True, False), tmp_path / "sid.pt"), build("sid", {"base": 2}), "sid")
    assert "conv1_1.weight is (4, 4, 3, 3) where (2, 4, 3, 3) is expected" in text
    assert "args seem to be {base: 4}" in text
    assert "SeeInDark (… conv10_1.bias), LSID (… conv10.bias)" in text


def test_keys_of_another_network_are_named_with_what_is_known(tmp_path: Path) -> None:
    path = published(SIDPort(2, False, True), tmp_path / "sid.pt")
    text = refusal(path, build("edsr", {"blocks": 1, "channels": 4}), "edsr")
    assert "no key of the network 'edsr', only conv1_1.weight" in text
    assert "BasicSR (… conv_last.bias)" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sub_mean.weight", 0.5 * torch.eye(3).view(3, 3, 1, 1)),
        ("add_mean.bias", torch.tensor([120.0, 120.0, 120.0])),
        ("sub_mean.bias", torch.full((3,), float("nan"))),
        ("sub_mean.bias", torch.zeros(1)),
        ("add_mean.weight", None),
    ],
)
def test_a_mean_shift_that_cant_be_taken_over_is_refused(tmp_path: Path, key: str, value: Tensor | None) -> None:
    state = EDSRPyTorch(2, 1, 4).state_dict()
    if value is None:
        del state[key]
    else:
        state[key] = value
    ours = build("edsr", {"blocks": 1, "channels": 4})
    assert "rgb_range" in refusal(write(tmp_path / "shift.pt", state), ours, "edsr")


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    theirs = BasicSR(2, 1, 4)
    theirs.conv_last.bias.data[1] = float("nan")
    text = refusal(published(theirs, tmp_path / "nan.pt"), build("edsr", {"blocks": 1, "channels": 4}), "edsr")
    assert "infinite values or NaN in conv_last.bias; all values must be finite" in text


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_does_not_run(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "it_ran"
    content = {"params": EDSRPyTorch(2, 1, 4).state_dict(), "args": Payload(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    text = refusal(path, build("edsr", {"blocks": 1, "channels": 4}), "edsr")
    assert "could run code" in text
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the payload is live: an unguarded reader runs it
    assert trace.exists()


def test_a_whole_pickled_module_and_a_plain_pickle_do_not_run(tmp_path: Path) -> None:
    ours = build("edsr", {"blocks": 1, "channels": 4})
    assert "could run code" in refusal(write(tmp_path / "module.pt", ours), ours, "edsr")
    trace = tmp_path / "it_ran"
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"head.weight": Payload(trace)}))
    assert "could run code" in refusal(tmp_path / "plain.pkl", ours, "edsr")
    assert not trace.exists()


def test_a_missing_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    ours = build("edsr", {"blocks": 1, "channels": 4})
    assert "can't be read: No such file" in refusal(tmp_path / "absent.pt", ours, "edsr")
    assert "can't be read: Is a directory" in refusal(tmp_path, ours, "edsr")
    path = published(ours, tmp_path / "cut.pt")
    whole = path.read_bytes()
    for content in (b"", b"not weights", whole[:100], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        assert "isn't a file of plain tensors" in refusal(path, ours, "edsr")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "holds no state_dict"),
        ({"epoch": 3, "params": {"a": 1}}, "holds no state_dict"),
        (
            {"params": {"head.weight": torch.zeros(1), "epoch": 3}},
            "'epoch' of its state_dict must be a tensor, not int",
        ),
        ({"params": {5: torch.zeros(1)}}, "5, a key of its state_dict, must be a text"),
        ({"head.weight": torch.zeros(4, 3, 3, 3).to_sparse()}, "'head.weight' must be a dense tensor"),
        ({"head.weight": torch.zeros(4, 3, 3, 3, dtype=torch.complex64)}, "'head.weight' must be a dense tensor"),
        ({"head.weight": torch.zeros(4, 3, 3, 3, device="meta")}, "'head.weight' must be a dense tensor"),
    ],
)
def test_what_is_no_state_dict_of_plain_tensors_is_named(tmp_path: Path, content: Any, said: str) -> None:
    path = write(tmp_path / "odd.pt", content)
    assert said in refusal(path, build("edsr", {"blocks": 1, "channels": 4}), "edsr")


def check(folder: Path, path: Path, factory: str = "edsr") -> subprocess.CompletedProcess[str]:
    """`python -m stages.check` with a checkpoint for edsr, as `make repro` begins."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["networks"]["edsr"] |= {"factory": factory, "args": {"blocks": 1, "channels": 4}}
    params["train"]["edsr"]["checkpoint"] = str(path)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("pipeline", "stages", "data"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return stage(folder, "check")


def test_make_repro_begins_by_refusing_weights_that_dont_fit_or_were_exchanged(tmp_path: Path) -> None:
    path, args = tmp_path / "given.pt", {"blocks": 1, "channels": 4}
    done = check(tmp_path, path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"check: error: train.edsr.checkpoint: {path} can't be read: No such file")
    assert len(done.stderr.splitlines()) == 1

    published(EDSRPyTorch(2, 1, 4), path)
    done = check(tmp_path, path)
    assert (done.returncode, done.stderr) == (0, "")

    baseline = tmp_path / "results" / "train" / "edsr" / "network.pt"
    checkpoint.save(baseline, build("edsr", args), "edsr", args, {}, {"checkpoint": str(path), "digest": "of another"})
    done = check(tmp_path, path)
    assert done.returncode == 2
    assert "has changed since results/train/edsr was made" in done.stderr
    assert "dvc repro -s -f train@edsr" in done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            torch.ones(4, 3, 3, 3).to(torch.float8_e4m3fn),
            "'head.weight' must be a dense tensor of real numbers of 16 to 64 bits on the CPU, not float8_e4m3fn",
        ),
        (torch.full((4, 3, 3, 3), 1e38), "'head.weight' must be finite and at most 1e+15, but holds 1e+38"),
        (torch.ones(4, 3, 3, 3, dtype=torch.int32), "'head.weight' holds torch.int32 where torch.float32 is expected"),
        (torch.ones(4, 3, 3, 3, dtype=torch.bool), "'head.weight' holds torch.bool where torch.float32 is expected"),
        (
            torch.full((4, 3, 3, 3), 1e300, dtype=torch.float64),
            "infinite values or NaN in head.weight; all values must be finite",
        ),
    ],
)
def test_weights_that_no_network_has_are_refused_by_name(tmp_path: Path, value: Tensor, said: str) -> None:
    ours = build("edsr", {"blocks": 1, "channels": 4})
    path = write(tmp_path / "odd.pt", {**ours.state_dict(), "head.weight": value})
    assert said in refusal(path, ours, "edsr")


def test_a_flipped_bit_of_given_weights_is_refused(tmp_path: Path) -> None:
    ours = build("edsr", {"blocks": 1, "channels": 4})
    path = published(ours, tmp_path / "given.pt")
    content = bytearray(path.read_bytes())
    place = content.index(ours.body_end.weight.detach().numpy().tobytes())
    content[place + 2] ^= 1  # a weight's third byte: another plausible weight
    path.write_bytes(content)
    assert "given.pt isn't a file of plain tensors: it is damaged" in refusal(path, ours, "edsr")


def test_weights_whose_output_isnt_finite_are_refused() -> None:
    network = nn.Sequential(*(conv(3, 3) for _ in range(4)))
    pretrained.check_output(network, torch.zeros(1, 3, 8, 8), "given.pt")
    for layer in network:
        nn.init.constant_(layer.weight, 1e14)
    with pytest.raises(UserError, match=r"given\.pt: with these weights the network's output must be finite"):
        pretrained.check_output(network, torch.zeros(1, 3, 8, 8), "given.pt")


class Ranged(nn.Module):
    """Enlarges images in its range of pixels; one in 0..1 it makes too bright."""

    def __init__(self, low: int) -> None:
        super().__init__()
        self.low = low

    def forward(self, x: Tensor) -> Tensor:
        fits = x.min() < 0 if self.low else x.max() > 1
        return F.interpolate(x, scale_factor=2, mode="bicubic") + (0.0 if fits else 0.3 * x.max())


@pytest.mark.parametrize(("low", "name"), [(0, "0..255"), (-1, "-1..1")])
def test_given_weights_for_another_range_of_pixels_are_warned_of_by_it(setup: Setup, low: int, name: str) -> None:
    network, least = Ranged(low), setup.validate(nn.Upsample(scale_factor=2, mode="bilinear"))
    found = setup.validate(network)
    assert found < least
    said = rf"train\.tiny: the baseline's PSNR of {found:.3f} dB is no better than .* with pixels in {name}, in"
    with pytest.warns(UserWarning, match=said):
        checks.warn_of_baseline(setup, network, found, least, "given.pt")
    with pytest.warns(UserWarning, match=r"no better than its input's 90\.000 dB; given\.pt was trained for something"):
        checks.warn_of_baseline(setup, network, found, 90.0, "given.pt")


def test_a_poor_network_that_another_range_suits_a_little_better_isnt_said_to_be_made_for_it() -> None:
    assert not pretrained.measured_range(nn.Identity(), lambda network: 27.1, 26.8, 27.0)
    assert "0..255" in pretrained.measured_range(nn.Identity(), lambda network: 27.1, 20.0, 27.0)


def test_a_trained_baseline_below_its_input_warns_and_a_better_one_is_silent(setup: Setup) -> None:
    with pytest.warns(UserWarning, match="PSNR of 20.000 dB is no better than its input's 21.000 dB; it needs more"):
        checks.warn_of_baseline(setup, nn.Identity(), 20.0, 21.0, None)
    with catch_warnings(action="error"):
        checks.warn_of_baseline(setup, nn.Identity(), 21.5, 21.0, None)


def test_a_baseline_that_gives_no_number_for_an_image_is_refused_by_the_images_name() -> None:
    checks.check_baseline("tiny", Quality(("a.png", "b.png"), (20.0, 30.0), (0.5, 0.6)))
    with pytest.raises(
        UserError, match=r"^train\.tiny: the baseline gives infinite values or NaN for .* image, b\.png$"
    ):
        checks.check_baseline("tiny", Quality(("a.png", "b.png"), (20.0, float("nan")), (0.5, 0.6)))


WRAPPERS = {
    "DataParallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "compiled and parallel": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "Lightning": lambda state: {
        "epoch": 3,
        "state_dict": {f"model.{key}": value for key, value in state.items()} | {"loss.vgg.weight": torch.ones(3)},
    },
    "a trainer of GANs": lambda state: {
        "state_dict": {f"generator.{key}": value for key, value in state.items()} | {"discriminator.a": torch.ones(1)}
    },
    "AveragedModel": lambda state: {
        "n_averaged": torch.tensor(7), **{f"module.{key}": value for key, value in state.items()}
    },
    "an averaged model beside its own": lambda state: {
        **{f"model.{key}": torch.zeros_like(value) for key, value in state.items()},
        **{f"ema_model.module.{key}": value for key, value in state.items()},
    },
    "a holder": lambda state: {"net": {"state_dict": state}},
    "averaged weights beside others": lambda state: {
        "model": {key: torch.zeros_like(value) for key, value in state.items()}, "model_ema": state
    },
    "half precision": lambda state: {"G": {key: value.half() for key, value in state.items()}},
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_are_found_below_what_wraps_them(wrapper: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = {"scale": 2, "blocks": 1, "channels": 4}
    published, ours = build("edsr", args), build("edsr", args)
    torch.save(WRAPPERS[wrapper](published.state_dict()), tmp_path / "weights.pth")
    load_weights(tmp_path / "weights.pth", ours, "edsr")
    for key, value in published.state_dict().items():
        assert torch.allclose(ours.state_dict()[key], value, rtol=1e-3, atol=1e-4 if wrapper == "half precision" else 0)


def test_a_prefix_that_the_network_itself_has_is_no_wrappers(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.ModuleDict({"first": nn.Conv2d(3, 4, 3)})

    published, ours = Named(), Named()
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    load_weights(tmp_path / "weights.pth", ours, "mine:build")
    assert torch.equal(ours.state_dict()["module.first.weight"], published.state_dict()["module.first.weight"])


def test_a_file_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no state_dict"):
        load_weights(tmp_path / "weights.pth", build("edsr", {"blocks": 1, "channels": 4}), "edsr")
