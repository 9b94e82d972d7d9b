"""Hostile networks of a user's own: whatever they raise or give is said with file and line before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from runner import Hostile, base, check, copied

MODULE = """\
import os, random, sys
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 12, 3, padding=1)
        {built}

    def forward(self, x):
        y = self.first(x)
        {run}
        return F.pixel_shuffle(self.last(y), 2)


class Mute(Exception):
    def __str__(self):
        raise ValueError


def build():
    network = Mine()
    {made}
    return network
"""
MINE = {"factory": "mine:build", "args": {}, "task": "super_resolution", "scale": 2}
RUN, BUILT, MADE = "mine.py:16", "mine.py:12", "mine.py:27"


def mine(name: str, says: tuple[str, ...], command: str = "stages.check", params: dict[str, Any] | None = None,
         environment: tuple[tuple[str, str], ...] = (), **parts: str) -> Hostile:  # fmt: skip
    """A network of one's own with a line of hostile code in its constructor, forward or factory."""

    def write(folder: Path) -> None:
        (folder / "mine.py").write_text(MODULE.format(**{"built": "pass", "run": "pass", "made": "pass"} | parts))

    changed = {"networks__edsr": MINE, "run__networks": ["edsr"]} | (params or {})
    return Hostile(name, command, says, changed, write, environment)


CASES = [
    # what a forward may raise beside these: tests/test_networks.py
    mine("a forward raises a key", ("networks.edsr", "it fails: KeyError: 'gain', at", RUN), run="{}['gain']"),
    mine("a forward exits with success", ("networks.edsr", "SystemExit: 0, at", RUN), run="exit(0)"),
    mine("a forward moves to CUDA", ("networks.edsr", RUN), run="y = y.cuda()",
         environment=(("CUDA_VISIBLE_DEVICES", ""),)),
    mine("a constructor asserts", ("'mine:build' failed: AssertionError, at", BUILT), built="assert False"),
    mine("a constructor raises a base exception", ("failed: BaseException: x, at", BUILT), built="raise BaseException('x')"),
    mine("a constructor reads what isn't there", ("failed: FileNotFoundError", "absent.pth", BUILT), built="open('absent.pth')"),
    mine("a factory gives a class", ("'mine:build'", "must return a torch.nn.Module, not type"), made="return Mine"),
    mine("a factory exits", ("'mine:build' failed: SystemExit: 1", MADE), made="sys.exit(1)"),
    Hostile("a module with a syntax error", "stages.check", ("'mine:build' cannot be imported", "mine.py:2"),
            {"networks__edsr": MINE}, lambda folder: (folder / "mine.py").write_text("x = 1\ndef f(:\n")),
    Hostile("a module that exits", "stages.check", ("'mine:build' cannot be imported: SystemExit", "mine.py:1"),
            {"networks__edsr": MINE}, lambda folder: (folder / "mine.py").write_text("raise SystemExit(0)\n")),
    # outputs
    mine("a tuple", ("networks.edsr", "it gives no tensor, but a tuple"), run="return y, y"),
    mine("a dictionary", ("networks.edsr", "a dict"), run="return {'image': y}"),
    mine("nothing", ("networks.edsr", "a NoneType"), run="return None"),
    mine("a complex image", ("networks.edsr", "complex64"), run="return F.pixel_shuffle(self.last(y), 2) + 0j"),
    mine("half precision", ("networks.edsr", "float16"), run="return F.pixel_shuffle(self.last(y), 2).half()"),
    mine("double precision", ("networks.edsr", "float64"), run="return F.pixel_shuffle(self.last(y), 2).double()"),
    mine("whole numbers", ("networks.edsr", "uint8"), run="return F.pixel_shuffle(self.last(y), 2).byte()"),
    mine("infinite values", ("networks.edsr", "infinite values or NaN"), run="y = y / 0"),
    mine("NaN where it is black", ("networks.edsr", "infinite values or NaN"), run="y = y * (x / x).mean()"),
    mine("another size", ("networks.edsr", "it gives (1, 12, 16, 16)"), run="return self.last(y)"),
    # training
    mine("a detached output", ("networks.edsr", "training can't go back"), run="y = self.last(y).detach(); return F.pixel_shuffle(y, 2)"),
    mine("no_grad", ("networks.edsr", "training can't go back"), run="torch.set_grad_enabled(False)"),
    mine("frozen parameters", ("networks.edsr", "no parameter that can be trained"), made="network.requires_grad_(False)"),
    mine("what is used is frozen", ("networks.edsr", "training can't go back"),
         made="network.requires_grad_(False); network.idle = nn.Conv2d(3, 3, 1)"),
    mine("in place on what is needed", ("networks.edsr", "training can't go back", "inplace"), run="y = y.exp(); z = y.square(); y.add_(1); y = z"),
    mine("in place on a parameter", ("networks.edsr", "in-place", RUN), run="self.first.weight.mul_(2)"),
    mine("a failure in training alone", ("networks.edsr", "fails in training", "KeyError", RUN), run="self.training and {}['loss']"),
    mine("a view of another memory format", ("networks.edsr", "view size", RUN), run="y = y.view(len(y), -1).view(y.shape)"),
    # what can't be traced or counted
    mine("a branch on values", ("networks.edsr", "depends on the values", RUN), run="y = y if y.mean() > 9 else -y"),
    mine("numpy in between", ("networks.edsr", RUN), run="y = y + torch.from_numpy(y.detach().numpy() * 2)"),
    # tensors
    mine("parameters on the meta device", ("'mine:build'", "first.weight", "meta device"), made="network.to('meta')"),
    mine("a buffer on the meta device", ("'mine:build'", "buffer mean", "meta device"), made="network.register_buffer('mean', torch.zeros(3, device='meta'))"),
    mine("parameters in half precision", ("networks.edsr", "type"), made="network.half()"),
    mine("no convolution", ("networks.edsr", "no 2-D convolution"), built="self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)",
         run="return F.interpolate(self.last(y), scale_factor=2.0)"),
    # sizes
    mine("one size only", ("networks.edsr: of", "nothing can be made", RUN), run="y = y * torch.linspace(1, 2, 16)",
         params={"analyze__edsr__size": [16, 16], "latency__sides": [16]}),
    mine("multiples of 7", ("networks.edsr", "multiples of 7"), run="y = F.interpolate(F.max_pool2d(y, 7), scale_factor=7.0) + y"),
    mine("a size that can't be counted", ("analyze.edsr.size is [35, 32]", "multiples of 16"), params={"analyze__edsr__size": [35, 32]},
         run="y = F.interpolate(F.max_pool2d(y, 16), scale_factor=16.0) + y"),
    mine("a side that can't be timed", ("latency.sides has 48", "multiples of 32"), params={"latency__sides": [48]},
         run="y = F.interpolate(F.max_pool2d(y, 32), scale_factor=32.0) + y if x.shape[2] > 16 else y"),
    mine("a side too large for memory", ("latency.sides", "GB of memory, but this machine has"), params={"latency__sides": [2**20]}),
    # memory
    Hostile("a network too large for memory", "stages.check", ("'edsr'", "blocks: 1024", "GB of memory"),
            {"networks__edsr__args": {"blocks": 1024, "channels": 4096}}),
    mine("one's own network too large for memory", ("'mine:build'", "GB of memory"), built="self.wide = nn.Linear(10**6, 10**7)"),
    Hostile("a batch too large for memory", "stages.check", ("train.edsr: batch 1000000000 of patch 16", "GB of memory"),
            {"train__edsr__batch": 10**9}),
]  # fmt: skip


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_network_ends_in_one_sentence(case: Hostile, origin: Path, tmp_path: Path) -> None:
    check(case, copied(origin, tmp_path / "chain"))
