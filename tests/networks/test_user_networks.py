"""What a user's network may raise or give: one sentence with the user's file and line, before anything trains."""

from __future__ import annotations

import math
import random
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chains import ROOT
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pipeline import checks, config, cost, networks
from pipeline.cli import command, guarded
from pipeline.data.storage import gathered
from pipeline.errors import UserError, explained, first_line, place, raised
from pipeline.evaluation import metrics
from pipeline.prepare.pairs import Making, make, photographs
from pipeline.training import setup

SECTION = config.Network(factory="mine:build", task="restoration", scale=1)
IMAGE = torch.zeros(1, 3, 16, 16)


class Mine(nn.Module):
    """A convolution between two steps that a test gives."""

    def __init__(self, way: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.way = nn.Conv2d(3, 3, 3, padding=1), way

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError


def raising(error: BaseException) -> Mine:
    def way(self: Mine, x: Tensor) -> Tensor:
        raise error

    return Mine(way)


def refusal(network: nn.Module, section: config.Network = SECTION, image: Tensor = IMAGE) -> str:
    with pytest.raises(UserError) as caught:
        checks.check("mine", section, image, network)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 1000
    assert "networks.mine" in said
    return said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError(), "it fails: AssertionError, at"),
        (KeyError("w"), "KeyError: 'w', at"),
        (IndexError("out"), "IndexError: out, at"),
        (AttributeError("none"), "AttributeError: none, at"),
        (NotImplementedError(), "NotImplementedError, at"),
        (ZeroDivisionError("zero"), "ZeroDivisionError: zero, at"),
        (MemoryError(), "MemoryError, at"),
        (StopIteration(), "StopIteration, at"),
        (RecursionError("deep"), "RecursionError: deep, at"),
        (SystemExit(0), "SystemExit: 0, at"),
        (GeneratorExit(), "GeneratorExit, at"),
        (BaseException("base"), "BaseException: base, at"),
        (OSError(2, "absent", "w.pth"), "absent: 'w.pth', at"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "UnicodeDecodeError: 'utf-8' codec"),
        (RuntimeError("shapes"), "it fails: shapes, at"),
        (RuntimeError(), "it fails: RuntimeError, at"),
        (ValueError(" \n \n second"), "ValueError: second, at"),
        (ValueError("\x1b[31mred"), "ValueError: [31mred, at"),
        (ValueError("long " * 999), "long  …, at"),
        (MuteError(), "it fails: MuteError, at"),
        (Warning("warned"), "Warning: warned, at"),
        (ExceptionGroup("many", [ValueError("one")]), "ExceptionGroup: many (1 sub-exception), at"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_a_forward_raises_is_one_sentence_with_file_and_line(error: BaseException, said: str) -> None:
    line = raising.__code__.co_firstlineno + 2
    assert said in refusal(raising(error))
    assert f"test_user_networks.py:{line}" in refusal(raising(error))


def test_a_forward_without_end_is_one_sentence() -> None:
    assert "RecursionError: maximum recursion depth exceeded" in refusal(Mine(lambda self, x: self(x)))


def test_the_place_is_the_users_own_frame_below_which_torch_fails() -> None:
    network = Mine(lambda self, x: F.conv2d(x, self.layer.weight[:, :2]))
    with pytest.raises(RuntimeError) as caught:
        network(IMAGE)
    frames = traceback.extract_tb(caught.value.__traceback__)
    own = [frame.lineno for frame in frames if frame.filename == __file__]
    assert place(caught.value).rpartition(":")[2] == str(own[-1])


def test_what_an_installed_package_raises_is_said_where_the_user_called_it() -> None:
    def call() -> None:
        Image.open(Path("absent.png"))

    with pytest.raises(FileNotFoundError) as caught:
        call()
    assert place(caught.value).endswith(f"test_user_networks.py:{call.__code__.co_firstlineno + 1}")


def test_a_fault_of_the_project_has_no_users_place() -> None:
    with pytest.raises(AttributeError) as caught:
        cost.as_json(None)
    caught.value.__traceback__ = caught.value.__traceback__.tb_next  # without this file's own frame
    assert place(caught.value) == ""
    assert raised(caught.value) == "AttributeError: 'NoneType' object has no attribute 'mac'"


def test_the_keyboard_and_sentences_pass() -> None:
    for error in (KeyboardInterrupt(), UserError("a sentence")):
        with pytest.raises(type(error)) as caught, explained("never said"):
            raise error
        assert caught.value is error
    assert first_line(UserError("a\nb")) == "a"


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (lambda s, x: (s.layer(x), x), "but a tuple; output: 0, or a key, says which of its tensors is trained"),
        (lambda s, x: {"image": s.layer(x)}, "it gives no tensor, but a dict"),
        (lambda s, x: None, "it gives no tensor, but a NoneType"),
        (lambda s, x: s.layer(x).half(), "torch.float16"),
        (lambda s, x: s.layer(x) + 0j, "torch.complex64"),
        (lambda s, x: s.layer(x).byte(), "torch.uint8"),
        (lambda s, x: s.layer(x).to_sparse(), "torch.float32, sparse_coo"),
        (lambda s, x: s.layer(x)[..., 1:], "it gives (1, 3, 16, 15)"),
        (lambda s, x: s.layer(x) / 0, "infinite values or NaN"),
        (lambda s, x: s.layer(x) + torch.log(x), "infinite values or NaN"),
        (lambda s, x: s.layer(x) + torch.log(1 - x), "infinite values or NaN"),
        (lambda s, x: s.layer(x).detach(), "training can't go back"),
        (lambda s, x: torch.no_grad()(s.layer)(x), "training can't go back"),
        (lambda s, x: torch.from_numpy(s.layer(x).detach().numpy()), "test_user_networks.py"),
        (lambda s, x: x + (y := s.layer(x)).exp_().square() + y.mul_(2), "training can't go back"),
        (lambda s, x: s.layer(x) + s.layer.weight.mul_(2).sum(), "a leaf Variable that requires grad"),
        (lambda s, x: s.layer(x.double() if s.training else x), "fails in training"),
        (lambda s, x: (s.layer(x), x) if s.training else s.layer(x), "gives a tuple in training"),
        (lambda s, x: s.layer(x).view(len(x), -1).view(x.shape), "view size is not compatible"),
        (lambda s, x: s.layer(x) if s.layer(x).mean() > 99 else s.layer(x) + 1, "depends on the values of tensors"),
        (lambda s, x: s.layer(x[x > -1].view(x.shape[0], 3, 16, -1)), "depends on the values of tensors"),
        (lambda s, x: x * s.layer.bias.view(3, 1, 1), "has no 2-D convolution"),
    ],
)  # fmt: skip
def test_what_training_tracing_or_counting_cant_use_is_refused_before_any_of_them(way: Callable, said: str) -> None:
    assert said in refusal(Mine(way))


def test_a_check_leaves_tensors_statistics_and_random_state_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    checks.check("mine", SECTION, IMAGE, network, bf16=True)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_tensors_on_the_meta_device_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("mine")
    module.build = lambda: nn.Conv2d(3, 3, 1, device="meta")
    monkeypatch.setitem(sys.modules, "mine", module)
    with pytest.raises(UserError, match="'mine:build' leaves parameter weight on the meta device"):
        networks.build("mine:build", {})


def test_a_factory_that_gives_one_network_again_and_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    only, module = nn.Conv2d(3, 3, 1), type(sys)("mine")
    module.build = lambda: only
    monkeypatch.setitem(sys.modules, "mine", module)
    networks.build("mine:build", {})
    with pytest.raises(UserError, match="'mine:build' gives the same network at each call; it must build a new one"):
        networks.build("mine:build", {})


def test_parameters_that_adam_cant_train_are_named() -> None:
    network = Mine(lambda s, x: s.layer(x) + s.table(torch.zeros(1, dtype=torch.int64)).mean())
    network.table = nn.Embedding(2, 2, sparse=True)
    assert "parameter table.weight gets a sparse gradient" in refusal(network)
    network = Mine(lambda s, x: s.layer(x))
    network.index = nn.Parameter(torch.arange(3), requires_grad=False)
    assert "parameter index holds torch.int64" in refusal(network)


def test_a_module_that_changes_torchs_usual_type_is_tried_with_what_images_have(recipe: config.Train) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        example = setup.example(SECTION, recipe)
        assert example.dtype == torch.float32
        assert "torch.float32" in refusal(nn.Conv2d(3, 3, 3, padding=1), image=example)
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_infinite_output_has_no_quality() -> None:
    image = torch.full((1, 3, 16, 16), 0.5)
    for value in (torch.inf, -torch.inf, torch.nan):
        output = image.clone()
        output[0, 0, 3, 3] = value
        assert math.isnan(metrics.psnr(output, image))
        assert math.isnan(metrics.psnr_y(output, image))


def test_what_a_users_code_raises_within_any_command_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    network = raising(KeyError("w"))
    said = f"KeyError: 'w', at tests/networks/test_user_networks.py:{raising.__code__.co_firstlineno + 2}\n"
    with pytest.raises(SystemExit) as caught, guarded("latency"):
        network(IMAGE)
    assert caught.value.code == 2
    assert capsys.readouterr().err.replace(f"{ROOT}/", "") == f"latency: error: {said}"
    assert command(lambda: network(IMAGE)) == 2
    assert capsys.readouterr().err.replace(f"{ROOT}/", "") == said


def test_a_fault_of_the_project_within_an_installed_package_keeps_its_traceback() -> None:
    lines = "import io\nfrom PIL import Image\nimport numpy as np\n"
    lines += "def opens(): Image.open(io.BytesIO(b'none'))\ndef joins(): np.concatenate([])\n"
    lines += "def absent(): open('absent.bin')\n"
    module: dict[str, Any] = {}
    exec(compile(lines, str(Path(cost.__file__).with_name("mine.py")), "exec"), module)
    for name, kind in (("opens", Image.UnidentifiedImageError), ("joins", ValueError), ("absent", FileNotFoundError)):
        with pytest.raises(kind):
            command(module[name])


def test_a_sentence_stays_one_line_whatever_name_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str) -> Any:
        raise UserError(f"{name} isn't allowed")

    for name, said in (
        ("a\nb\r", r"a\nb\r"), ("a\0b", r"a\x00b"), ("\x1b[31mb", r"\x1b[31mb"), ("a\u2028b", r"a\u2028b"),
        ("a\udcffb", r"a\udcffb"), ("a\u202eb", r"a\u202eb"), ("Höhe 1 …", "Höhe 1 …"), ("写真", "写真"),
    ):  # fmt: skip
        assert command(lambda name=name: refuse(name)) == 2
        assert capsys.readouterr().err == f"{said} isn't allowed\n"
        with guarded("check"):
            told = warnings.formatwarning(name, UserWarning, __file__, 1)
        assert told == f"check: warning: {said}\n"
    assert command(lambda: refuse("x" * 100_000)) == 2
    text = capsys.readouterr().err
    assert len(text) < 1000
    assert text.endswith("x isn't allowed\n")


# costs


class Windows(nn.Module):
    """Windows of 8 x 8 pixels in the batch, a grouped and a transposed convolution among them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.inside, self.up = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ConvTranspose2d(8, 4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        n, c, h, w = y.shape
        y = y.view(n, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 8, 8)
        y = self.up(self.inside(y)).view(n, h // 8, w // 8, 4, 16, 16)
        return self.last(y.permute(0, 3, 1, 4, 2, 5).reshape(n, 4, 2 * h, 2 * w))


def test_windows_in_the_batch_count_each() -> None:
    network = Windows()
    found = cost.measure(network, (16, 24), 3)
    with FlopCounterMode(display=False) as flops:
        network(torch.rand(1, 3, 16, 24))
    # 384 positions: 27·8, 9·4·8 (all six windows), 4·8·4 at the input's positions; 1,536 of 4·3 at the end
    assert [layer.mac for layer in found.layers] == [384 * 216, 384 * 288, 384 * 128, 1536 * 12]
    assert 2 * found.mac == flops.get_total_flops()


@pytest.mark.parametrize(
    ("way", "times"),
    [
        (lambda s, x: s.layer(torch.cat([x, x.flip(3), x.flip(2), x.flip((2, 3))])).mean(0, True), 4),
        (lambda s, x: s.layer(x.transpose(0, 1).expand(3, 3, -1, -1))[:, :1].transpose(0, 1), 3),
        (lambda s, x: s.layer(x[0]), 1),
    ],
    ids=["flips", "colours", "no batch"],
)
def test_flips_and_colours_in_the_batch_count_each(way: Callable, times: int) -> None:
    network = Mine(way)
    assert cost.measure(network, (16, 24), 3).mac == times * 81 * 16 * 24
    assert cost.measure(network, (16, 24), 3).activations == times * 6 * 16 * 24


@pytest.mark.parametrize(
    "way",
    [
        lambda s, x: s.layer(x.to("cpu")).to(x.device),
        lambda s, x: s.layer(x) * (x > 0).nonzero().float().mean(),
        lambda s, x: s.layer(x) * x[x > 0].sum(),
        lambda s, x: s.layer(x) * x.max().item(),
        lambda s, x: s.layer(x * torch.from_numpy(np.ones((3, 1, 1), np.float32))),
        lambda s, x: s.layer(x.to(s.layer.weight.device, torch.float32)),
    ],
)
def test_costs_are_counted_of_forwards_that_name_devices_or_read_values(way: Callable) -> None:
    assert cost.measure(Mine(way), (10**4, 10**4), 3).mac == 81 * 10**8  # 1.2 GB, were it allocated


# sides


class Multiples(nn.Module):
    """Takes sides that are multiples of a number only."""

    def __init__(self, number: int, channels: int = 3) -> None:
        super().__init__()
        self.number, self.layer = number, nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        n, c, h, w = y.shape
        k = self.number
        return y.view(n, c, h // k, k, w // k, k).mean((3, 5)).repeat_interleave(k, 2).repeat_interleave(k, 3) + y


@pytest.mark.parametrize("number", [1, 2, 3, 6, 7, 12, 24, 64])
def test_the_multiple_that_sides_must_be_of_is_found(number: int) -> None:
    network = Multiples(number)

    def takes(height: int, width: int) -> bool:
        try:
            return bool(cost.shape(network, (1, 3, height, width)))
        except UserError:
            return False

    assert cost.multiple(takes) == number


@pytest.mark.parametrize(("patch", "number", "side"), [(8, 1, 16), (24, 6, 24), (12, 12, 24), (63, 7, 63), (21, 7, 21),
                                                       (512, 1, 64), (96, 12, 96), (512, 64, 64)])  # fmt: skip
def test_the_traced_image_is_one_that_the_network_takes(
    recipe: config.Train, patch: int, number: int, side: int
) -> None:
    network, wanted = Multiples(number), recipe.model_copy(update={"patch": patch})
    example = setup.example(SECTION, wanted, network)
    assert example.shape == (1, 3, side, side)
    checks.check("mine", SECTION, example, network)
    checks.check_patch("mine", SECTION, wanted, network)


def test_a_patch_and_pictures_that_dont_fit_say_the_multiple_and_the_key(recipe: config.Train) -> None:
    network = Multiples(6)
    with pytest.raises(
        UserError, match=r"train\.mine\.patch is 8, .* takes heights and widths that are multiples of 6"
    ):
        checks.check_patch("mine", SECTION, recipe, network)
    said = r"multiples of 6, as train\.mine\.patch must be, and networks\.mine\.multiple: 6 makes `prepare` cut images"
    with pytest.raises(UserError, match=said):
        checks.check("mine", SECTION, torch.zeros(1, 3, 16, 16), network)
    with pytest.raises(UserError, match=r"multiples of 6, as train\.mine\.patch must be$"):
        checks.check("mine", SECTION.model_copy(update={"multiple": 12}), torch.zeros(1, 3, 16, 16), network)
    checks.check_images("mine", SECTION, [(48, 60)], ["a.png"], network)
    with pytest.raises(UserError, match=r"of b\.png, an input of 50×48 pixels, .* networks\.mine\.multiple: 6 makes"):
        checks.check_images("mine", SECTION, [(48, 60), (48, 50)], ["a.png", "b.png"], network)
    with pytest.raises(UserError, match=r"analyze\.mine\.size is \[48, 50\], but .* multiples of 6"):
        checks.check_size("mine", SECTION, (48, 50), network)
    with pytest.raises(UserError, match=r"latency\.sides has 64: .* multiples of 6, and networks\.mine\.multiple: 6"):
        checks.check_sides("mine", SECTION, (48, 64), network)
    checks.check_sides("mine", SECTION.model_copy(update={"multiple": 6}), (48, 64), network)  # 66 pixels are timed


@pytest.mark.parametrize(("multiple", "sides"), [(1, (64, 128, 256)), (6, (66, 132, 258)), (7, (70, 133, 259)),
                                                 (128, (128, 256))])  # fmt: skip
def test_timed_sides_are_rounded_up_to_the_networks_multiple(multiple: int, sides: tuple[int, ...]) -> None:
    assert SECTION.model_copy(update={"multiple": multiple}).sides((64, 128, 256)) == sides


def test_pictures_are_cut_to_the_networks_multiple(pictures: dict[str, list[Path]]) -> None:
    whole = gathered(*make(photographs(pictures["train"]), Making("super_resolution", 2, 24)))
    cut = gathered(*make(photographs(pictures["train"]), Making("super_resolution", 2, 24, multiple=10)))
    assert whole["sizes"].tolist() == [[28, 24]] * 3  # of pictures of 56 × 48
    assert cut["sizes"].tolist() == [[20, 20]] * 3
    wanted = whole["high"].reshape(3, 56, 48, 3)[:, :40, :40]
    assert np.array_equal(cut["high"].reshape(3, 40, 40, 3), wanted)


# memory


def test_what_cant_fit_in_memory_is_named_with_its_key_and_bytes(
    recipe: config.Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, section = nn.Conv2d(3, 3, 3, padding=1), SECTION
    monkeypatch.setattr(checks, "memory", lambda: 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checks.check_patch("mine", section, recipe, network)
    with pytest.raises(UserError, match=r"train\.mine: batch 1000000 of patch 8 takes at least 1\.9 GB of memory, but"):
        checks.check_patch("mine", section, recipe.model_copy(update={"batch": 10**6}), network)
    checks.check_sides("mine", section, (4096,), network)
    with pytest.raises(UserError, match=r"latency\.sides: 8192 takes at least 1\.6 GB of memory, but this .* 1\.0 GB"):
        checks.check_sides("mine", section, (4096, 8192), network)
    with pytest.raises(UserError, match=r"networks\.mine: b\.png takes at least 2\.4 GB"):
        checks.check_images("mine", section, [(9, 9), (10**4, 10**4)], ["a.png", "b.png"], network)


def test_a_network_too_large_for_memory_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    networks.affordable("edsr", {"blocks": 2})
    networks.affordable("sid", {})
    assert torch.equal(torch.get_rng_state(), state)
    said = r"'edsr': with args \{blocks: 1024, channels: 4096\} its parameters take 1,24\d\.\d GB of memory, but"
    with pytest.raises(UserError, match=said):
        networks.build("edsr", {"blocks": 1024, "channels": 4096})
    module = type(sys)("mine")
    module.build = lambda: nn.Linear(10**7, 10**7)
    monkeypatch.setitem(sys.modules, "mine", module)
    with pytest.raises(UserError, match=r"'mine:build': with args \{\} its parameters take 400,000\.0 GB"):
        networks.affordable("mine:build", {})
