"""Hostile files: what stands where one is written, and weights, checkpoints and prepared arrays that are damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from runner import Hostile, base, check, copied

from pipeline import networks
from pipeline.data.storage import save_split
from pipeline.networks import checkpoint

ARGS = {"scale": 2, "blocks": 2, "channels": 8}
DRAWN = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        {drawn}
    def forward(self, x):
        x = x * {used}
        return nn.functional.pixel_shuffle(self.conv(x), 2)
def make(**_):
    return Net()
"""


def pruned(folder: Path) -> Path:
    path = folder / "net.pt"
    checkpoint.save(path, networks.build("edsr", ARGS), "edsr", ARGS, {})
    return path


def linked(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (pruned(folder), (folder / name).symlink_to(target))[0] and None


def fifo(folder: Path) -> None:
    pruned(folder)
    os.mkfifo(folder / "x.onnx")


def hard(folder: Path) -> None:
    os.link(pruned(folder), folder / "x.onnx")


def flipped(folder: Path) -> None:
    path = pruned(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def given(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        state = dict(networks.build("edsr", ARGS).state_dict())
        change(state)
        torch.save(state, folder / "given.pth")

    return make


def prepared(spoil: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for split in ("train", "validation"):
            pixels = np.zeros((32 * 32, 3), np.uint8)
            content = {
                "task": np.array("super_resolution"), "names": np.array(["a.png"]), "scale": np.array(2),
                "sizes": np.array([[32, 32]]), "low": pixels, "high": np.zeros((64 * 64, 3), np.uint8),
            }  # fmt: skip
            save_split(folder / "results" / "prepare" / "edsr" / split, content)
        (folder / ".scratch").mkdir()
        (folder / ".scratch" / "tracking.lock").touch()  # of a stage that ran before
        spoil(folder / "results" / "prepare" / "edsr" / "train")

    return make


def changed(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def written(drawn: str, used: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "mine.py").write_text(DRAWN.format(drawn=drawn, used=used))


WEIGHTS = {"train__edsr__checkpoint": "given.pth"}
MINE = {"networks__edsr__factory": "mine:make", "networks__edsr__args": {}}
EXPORT = "pipeline.export net.pt --output"

CASES = [
    Hostile("onto a device", f"{EXPORT} /dev/full", ("/dev/full can't be written", "it is a device"), make=pruned),
    Hostile("onto a link to one", f"{EXPORT} x", ("x can't be", "device"), make=linked("x", "/dev/null")),
    Hostile("onto a pipe", f"{EXPORT} x.onnx", ("x.onnx can't be written: it is a pipe",), make=fifo),
    Hostile("onto a loop of links", f"{EXPORT} x", ("x can't be written: Too many levels",), make=linked("x", "x")),
    Hostile("onto a folder", f"{EXPORT} data", ("data can't be written: Is a directory",), make=pruned),
    Hostile("onto the input", f"{EXPORT} net.pt", ("net.pt", "which is read to make it"), make=pruned),
    Hostile("onto the input by a link", f"{EXPORT} x", ("which is read to make it",), make=linked("x", "net.pt")),
    Hostile("onto the input by a hard link", f"{EXPORT} x.onnx", ("which is read to make it",), make=hard),
    Hostile("onto the input by another way", f"{EXPORT} data/../net.pt", ("which is read to",), make=pruned),
    Hostile("a long name", f"{EXPORT} {'x' * 300}", ("File name too long; a shorter name",), make=pruned),
    Hostile("a very long path", f"{EXPORT} {'x/' * 3000}", ("File name too long; a shorter name",), make=pruned),
    Hostile("a name with a line end", f"{EXPORT} a\nb", ("'a\\nb'", "control characters"), make=pruned),
    Hostile("a name with NUL", f"{EXPORT} a\0b", ("'a\\x00b'", "control characters"), make=pruned),
    Hostile("below a file", f"{EXPORT} net.pt/x", ("net.pt/x can't be written: Not a directory",), make=pruned),
    Hostile("no name", f"{EXPORT} ", ("--output", "a folder"), make=pruned),
    Hostile("a flipped bit to export", f"{EXPORT} x", ("net.pt isn't a file of plain tensors", "damaged"),
            make=flipped),
    Hostile("weights of 1e38", "stages.check", ("train.edsr.checkpoint: given.pth: 'head.weight'", "1e+38"), WEIGHTS,
            given(lambda state: state.update({"head.weight": torch.full((8, 3, 3, 3), 1e38)}))),
    Hostile("weights of integers", "stages.check", ("given.pth: 'tail.bias' holds torch.int64",), WEIGHTS,
            given(lambda state: state.update({"tail.bias": torch.zeros(3, dtype=torch.int64)}))),
    Hostile("weights without a finite output", "stages.check", ("given.pth: with these weights", "finite"), WEIGHTS,
            given(lambda state: [value.fill_(9e14) for value in state.values()])),
    Hostile("a hole in a prepared array", "stages.train edsr", ("train/high.npy: isn't as it was written",),
            make=prepared(lambda split: changed(split / "high.npy", 4000))),
    Hostile("a changed index", "stages.train edsr", ("train/index.json isn't as it was written", "prepare@edsr"),
            make=prepared(lambda split: (split / "index.json").write_text(
                (split / "index.json").read_text().replace("a.png", "b.png")))),
    Hostile("an attribute drawn at construction", "stages.check", ("'mine:make'", "'mask' differ", "register_buffer"),
            MINE, written("self.mask = torch.rand(3, 1, 1)", "self.mask")),
    Hostile("a list drawn at construction", "stages.check", ("'masks[0]' differ",), MINE,
            written("self.masks = [torch.rand(3, 1, 1)]", "self.masks[0]")),
    Hostile("a buffer that isn't kept", "stages.check", ("'mask' differ",), MINE,
            written("self.register_buffer('mask', torch.rand(3, 1, 1), persistent=False)", "self.mask")),
    Hostile("layers in a plain list", "stages.check", ("'more[0].weight' differ", "nn.ModuleList"), MINE,
            written("self.more = [nn.Conv2d(3, 1, 1)]; self.more[0].requires_grad_(False)", "self.more[0](x)")),
]  # fmt: skip


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("hostile"))


SLOW = ("weights of integers", "a changed index", "a list drawn at construction", "a buffer that isn't kept")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.attack] if case.name in SLOW else []) for case in CASES], ids=str
)
def test_a_hostile_file_ends_in_one_sentence(case: Hostile, origin: Path, tmp_path: Path) -> None:
    check(case, copied(origin, tmp_path / "chain"))


def test_a_link_given_as_output_stays_and_its_target_is_written(origin: Path, tmp_path: Path) -> None:
    from runner import command

    folder = copied(origin, tmp_path / "chain")
    pruned(folder)
    (folder / "x.onnx").symlink_to("there.onnx")
    ended = command(folder, f"{EXPORT} x.onnx")
    assert (ended.status, ended.stderr) == (0, "")
    assert (folder / "x.onnx").is_symlink()
    assert (folder / "there.onnx").stat().st_size > 1000
