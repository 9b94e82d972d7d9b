"""The paper's methods, and runs of the pruning loop that can be killed, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pipeline import config
from pipeline.evaluation.metrics import Quality
from pipeline.progress import Progress
from pipeline.pruning import prune
from pipeline.pruning.gate import Target
from pipeline.pruning.prune import Setup

A = ("adaptive",)
B = ("adaptive", "depth")
C = ("adaptive", "depth", "efficiency")
D = ("adaptive", "depth", "efficiency", "balance")
EASY = Target((Quality(("flag", "fur"), (0.0, 0.0), (0.0, 0.0)),))


class Killed(Progress):
    """Stops the process, as it were, at the n-th training step."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__("test", 1)
        self.left = at

    def tick(self, done: int, psnr: float | None = None) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        super().tick(done, psnr)


def run(
    network: nn.Module, setup: Setup, settings: config.Settings, active: tuple[str, ...], scratch: Path, **more: Any
):
    more = {"target": EASY, "progress": Killed()} | more
    return prune.prune(network, setup, settings, active, scratch=scratch, **more)
