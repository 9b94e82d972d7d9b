"""A small training as a command, for the tests of several devices: `python ranks.py FOLDER TASK [RANKS]`.

FOLDER holds train.json, the paths of the pictures, and takes what rank 0 makes. RANKS are begun here, unless RANK is
in the environment, as torchrun puts it there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import config, networks
from pipeline.cli import guarded
from pipeline.data.dataset import load_images
from pipeline.data.storage import gathered
from pipeline.prepare.pairs import Making, make, photographs
from pipeline.training import devices, loop
from pipeline.training.device import choose

RECIPE = config.Train(steps=6, batch=4, patch=8, lr=1e-3, lr_final=1e-5, clip=1.0, average=0.9, validate_every=1)


@dataclass(frozen=True)
class Shrink:
    """A penalty on the first layer, which is no number at that call."""

    broken: int = -1

    def __call__(self, network: nn.Module) -> Tensor:
        calls = network.__dict__["calls"] = network.__dict__.get("calls", 0) + 1
        size = next(network.parameters()).square().sum()
        return 1e-3 * size if calls != self.broken else size * float("nan")


def small() -> nn.Module:
    torch.manual_seed(0)
    return networks.build("edsr", {"scale": 2, "blocks": 1, "channels": 8})


def taught() -> dict[str, Any]:
    torch.manual_seed(1)
    teacher = networks.build("edsr", {"scale": 2, "blocks": 1, "channels": 4})
    return {"penalty": Shrink(), "teacher": loop.Teacher(teacher, 0.5)}


def pictures(folder: Path):
    paths = [Path(path) for path in json.loads((folder / "train.json").read_text())]
    return load_images(gathered(*make(photographs(paths), Making("super_resolution", scale=2, minimum=24))), "cpu")


@dataclass
class Dying:
    """Images of which this process dies at that step."""

    images: Any
    step: int

    def batch(self, step: int, *rest: int) -> tuple[Tensor, Tensor]:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images.batch(step, *rest)


def main(folder: Path, task: str, ranks: int) -> None:
    loop.SAVE_SECONDS = -1.0  # after every step
    machine, images = choose("cpu", 1, "fp32"), pictures(folder)
    words = [__file__, str(folder), task, str(ranks)]
    same = {"code": os.environ.get("CODE", ""), "params.yaml": os.environ.get("PARAMS", "")}
    with devices.joined(ranks, words, machine, same) as rank:
        if rank:
            loop.serve(Dying(images, 3) if task == "dies" else images, machine)
            return
        network, saved = small(), folder / "state.pt"
        curve = loop.fit(
            network, images, RECIPE, machine, seed=1, validate=lambda _: 0.0, resume=saved, **taught()
        )  # fmt: skip
        assert task != "dies"
        try:
            loop.fit(small(), images, RECIPE, machine, seed=1, penalty=Shrink(broken=3))
        except loop.NonFiniteLossError as error:
            broken = error.step
        again = loop.fit(small(), images, RECIPE, machine, seed=1, validate=lambda _: 0.0, **taught())
        torch.save(network.state_dict(), folder / "network.pt")
        told = {"losses": [p.loss for p in curve], "again": [p.loss for p in again], "broken": broken}
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    with guarded("ranks"):
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
