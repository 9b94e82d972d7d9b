"""Hostile networks of a user's own: whatever they raise or give is said with file and line before anything trains."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from runner import Hostile, base, check, command, copied

from pipeline import networks
from pipeline.networks import checkpoint

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
FILE = {"task": "super_resolution", "scale": 2}
RUN, BUILT, MADE = "mine.py:16", "mine.py:12", "mine.py:27"


def mine(name: str, says: tuple[str, ...], command: str = "stages.check", params: dict[str, Any] | None = None,
         environment: tuple[tuple[str, str], ...] = (), **parts: str) -> Hostile:  # fmt: skip
    """A network of one's own with a line of hostile code in its constructor, forward or factory."""

    def write(folder: Path) -> None:
        (folder / "mine.py").write_text(MODULE.format(**{"built": "pass", "run": "pass", "made": "pass"} | parts))

    changed = {"networks__edsr": MINE, "run__networks": ["edsr"]} | (params or {})
    return Hostile(name, command, says, changed, write, environment)


CASES = [
    # what else a network may raise or give: tests/test_user_networks.py
    mine("a forward raises a key", ("networks.edsr", "it fails: KeyError: 'gain', at", RUN), run="{}['gain']"),
    mine("a forward exits with success", ("networks.edsr", "SystemExit: 0, at", RUN), run="exit(0)"),
    mine("a forward moves to CUDA", ("networks.edsr", RUN), run="y = y.cuda()",
         environment=(("CUDA_VISIBLE_DEVICES", ""),)),
    mine("a constructor asserts", ("'mine:build' failed: AssertionError, at", BUILT), built="assert False"),
    mine("a constructor raises a base exception", ("failed: BaseException: x, at", BUILT),
         built="raise BaseException('x')"),
    mine("a factory gives a class", ("'mine:build'", "must return a torch.nn.Module, not type"), made="return Mine"),
    mine("a factory exits", ("'mine:build' failed: SystemExit: 1", MADE), made="sys.exit(1)"),
    Hostile("a module with a syntax error", "stages.check", ("'mine:build' cannot be imported", "mine.py:2"),
            {"networks__edsr": MINE}, lambda folder: (folder / "mine.py").write_text("x = 1\ndef f(:\n")),
    Hostile("a module that exits", "stages.check", ("'mine:build' cannot be imported: SystemExit", "mine.py:1"),
            {"networks__edsr": MINE}, lambda folder: (folder / "mine.py").write_text("raise SystemExit(0)\n")),
    mine("infinite values", ("networks.edsr", "infinite values or NaN"), run="y = y / 0"),
    mine("an output that isn't there", ("networks.edsr: output is 2", "the forward of Mine returns 0, 1"),
         run="return [y, y]", params={"networks__edsr": MINE | {"output": 2}}),
    mine("an output that is None", ("networks.edsr: output is 1, for which the forward of Mine returns None",),
         run="return [y, None]", params={"networks__edsr": MINE | {"output": 1}}),
    Hostile("a network's file that isn't there", "stages.check", ("gone.pth can't be read: No such file",),
            {"networks__edsr": FILE | {"file": "gone.pth"}, "run__networks": ["edsr"]}),
    Hostile("a network's file that is a folder", "stages.check", ("data can't be read: Is a directory",),
            {"networks__edsr": FILE | {"file": "data"}, "run__networks": ["edsr"]}),
    Hostile("a network added by a file that isn't there", "stages.add mine gone.pth --images data/photos",
            ("unknown network 'gone.pth'", "a file of weights, and there is no such file")),
    Hostile("a network added without photographs", "stages.add mine edsr --images examples",
            ("prepare.mine", "examples")),
    Hostile("a network added to one name", "stages.add mine edsr --images data/photos",
            ("run.networks must be a list of names",), {"run__networks": "edsr"}),
    mine("a detached output", ("networks.edsr", "training can't go back"),
         run="y = y.detach(); self.last.requires_grad_(False)"),
    mine("gradients switched off", ("networks.edsr", "training can't go back"), run="torch.set_grad_enabled(False)"),
    mine("a branch on values", ("networks.edsr", "depends on the values", RUN), run="y = y if y.mean() > 9 else -y"),
    mine("parameters on the meta device", ("'mine:build'", "first.weight", "meta device"), made="network.to('meta')"),
    mine("one size only", ("networks.edsr: of", "nothing can be made", RUN), run="y = y * torch.linspace(1, 2, 16)",
         params={"analyze__edsr__size": [16, 16], "latency__sides": [16]}),
    mine("a side that can't be timed", ("latency.sides has 48", "multiples of 32"), params={"latency__sides": [48]},
         run="y = F.interpolate(F.max_pool2d(y, 32), scale_factor=32.0) + y if x.shape[2] > 16 else y"),
    mine("a size that can't be counted", ("analyze.edsr.size is [35, 32]", "multiples of 16"),
         params={"analyze__edsr__size": [35, 32]}, run="y = F.interpolate(F.max_pool2d(y, 16), scale_factor=16.0) + y"),
    Hostile("a network too large for memory", "stages.check", ("'edsr'", "blocks: 1024", "GB of memory"),
            {"networks__edsr__args": {"blocks": 1024, "channels": 4096}}),
    mine("a cost of a forward that raises", ("KeyError: 'gain'", RUN),
         "pipeline.cost --network mine:build --size 16x16", run="{}['gain']"),
    mine("a cost of a constructor that raises", ("IndexError", BUILT),
         "pipeline.cost --network mine:build --size 16x16", built="[][1]"),
]  # fmt: skip


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline of mine:build, as `train` would leave it."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["networks"]["edsr"], params["run"]["networks"] = MINE, ["edsr"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "mine.py").write_text(MODULE.format(built="pass", run="pass", made="pass"))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    network = networks.build("mine:build", {})
    checkpoint.save(folder / "results" / "train" / "edsr" / "network.pt", network, "mine:build", {}, {})
    monkeypatch.delitem(sys.modules, "mine")


def test_a_module_that_was_edited_after_training_is_named_and_one_that_wasnt_is_not(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(origin, tmp_path / "chain")
    trained(folder, monkeypatch)
    done = command(folder, "stages.check")
    assert (done.status, done.stderr) == (0, "")
    begun, said = done.stdout.splitlines()
    assert begun == "check: reading the images, building and tracing edsr"
    assert said == (
        "check: params.yaml is in order; edsr can be built, trained and traced; all images were read whole, 8 files; "
        "next: make repro, or dvc repro"
    )
    text = (folder / "mine.py").read_text()
    for old, new, fault in (
        ("y = self.first(x)", "y = self.first(x).relu()", "doesn't compute what it did"),
        ("nn.Conv2d(3, 4, 3, padding=1)", "nn.Conv2d(3, 4, 1)", "state_dict holds 'first.weight'"),
    ):
        (folder / "mine.py").write_text(text.replace(old, new))
        done = command(folder, "stages.check")
        assert (done.status, done.stdout) == (2, f"{begun}\n")
        assert "check: error: networks.edsr: results/train/edsr/network.pt: " in done.stderr
        assert fault in done.stderr
        assert done.stderr.endswith("dvc repro -s -f train@edsr makes it anew\n")


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_network_ends_in_one_sentence(case: Hostile, origin: Path, tmp_path: Path) -> None:
    check(case, copied(origin, tmp_path / "chain"))
