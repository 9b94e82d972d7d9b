"""Which share of the training loop at the small preset waits for data: medians over steps, by network.

    python benchmarks/data_wait.py

Each network of params.yaml is trained as the chain trains it, on images prepared in a temporary folder. A batch is made
while the step before it is trained; the wait is what the loop then still waits for it, the step all the time from one
batch to the next. The target is less than 5%. The time that making a batch takes is printed too: a core that has
nothing else to do pays it, and where every core trains, the steps grow by it.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from pipeline import config, networks
from pipeline.data import storage
from pipeline.data.dataset import load_images
from pipeline.prepare import layouts, pairs
from pipeline.training import loop
from pipeline.training.device import choose

STEPS, WARM = 120, 20
MAKE_BATCHES = loop.batches


@dataclass
class Timed:
    """Images whose batches are timed, and the training loop's wait for them."""

    images: Any
    making: list[float] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def batch(self, *arguments: int) -> tuple[torch.Tensor, torch.Tensor]:
        began = time.perf_counter()
        made = self.images.batch(*arguments)
        self.making.append(time.perf_counter() - began)
        return made

    def batches(
        self, images: Any, recipe: config.Train, seed: int, start: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        coming = MAKE_BATCHES(images, recipe, seed, start)
        while True:
            self.asked.append(time.perf_counter())
            made = next(coming, None)
            if made is None:
                return
            self.waits.append(time.perf_counter() - self.asked[-1])
            yield made


def main() -> None:
    params = config.read(Path(__file__).parents[1] / "params.yaml")
    machine = choose(params.device, params.threads, params.precision)
    with tempfile.TemporaryDirectory() as folder:
        for network in params.run.networks:
            part = layouts.checked(params, network).parts["train"]
            storage.save_split(Path(folder) / network, *pairs.make(part.sources, part.making))
            images = Timed(load_images(Path(folder) / network, machine.device))
            recipe = params.train[network].model_copy(update={"steps": STEPS})
            torch.manual_seed(params.seed)
            wanted = params.networks[network]
            loop.batches = images.batches
            loop.fit(networks.build(wanted.factory, wanted.args), images, recipe, machine, seed=params.seed)
            steps = [end - start for start, end in itertools.pairwise(images.asked)][WARM:]
            shares = sorted(wait / step for wait, step in zip(images.waits[WARM:], steps, strict=True))
            tenth = len(shares) // 10
            share, low, high = (100 * value for value in (statistics.median(shares), shares[tenth], shares[-1 - tenth]))
            step, making = (1e3 * statistics.median(times) for times in (steps, images.making))
            print(
                f"{network}: the loop waits {share:.1f}% of a step of {step:.0f} ms (tenths: {low:.1f}, {high:.1f}); "
                f"making a batch takes {making:.1f} ms"
            )


if __name__ == "__main__":
    main()
