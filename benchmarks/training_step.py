"""How long a training step takes in float32 and bfloat16, with one thread and two, and with a teacher.

Ratios, interleaved, medians:

    python benchmarks/training_step.py

The chain trains in one thread, its two networks side by side, and in bfloat16 where the processor has it; this prints
what each choice gains here. The teacher is the whole network, as where nothing is removed yet. The optimiser isn't in
the step. Images are random: the arithmetic doesn't know.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from pipeline import networks

ROUNDS, STEPS = 7, 6
CASES = {
    "edsr 4x16": ("edsr", {"blocks": 4, "channels": 16}, (16, 3, 24, 24)),
    "edsr 8x32": ("edsr", {"blocks": 8, "channels": 32}, (16, 3, 24, 24)),
    "sid 8": ("sid", {"base": 8}, (8, 4, 48, 48)),
    "sid 16": ("sid", {"base": 16}, (8, 4, 48, 48)),
}


@dataclass(frozen=True)
class Mode:
    """How a step is made."""

    bf16: bool
    threads: int
    taught: bool = False  # half of the loss is against a teacher's output

    def __str__(self) -> str:
        kind = "bfloat16" if self.bf16 else "float32"
        return f"{kind}, {self.threads} thread{'s' * (self.threads > 1)}{', with a teacher' * self.taught}"


MODES = [Mode(bf16, threads) for bf16 in (False, True) for threads in (1, 2)]
MODES += [Mode(bf16, 1, taught=True) for bf16 in (False, True)]


def seconds(network: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, mode: Mode) -> float:
    """Mean time of a step, forwards and backwards."""
    torch.set_num_threads(mode.threads)
    began = time.perf_counter()
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=mode.bf16):
            outputs = network(inputs)
            with torch.no_grad():
                told = network(inputs) if mode.taught else None
        loss = (outputs.float() - targets).abs().mean()
        if told is not None:
            loss = 0.5 * loss + 0.5 * (outputs.float() - told.float()).abs().mean()
        loss.backward()
    return (time.perf_counter() - began) / STEPS


def main() -> None:
    for label, (name, args, shape) in CASES.items():
        network = networks.build(name, args).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = torch.rand(shape).contiguous(memory_format=torch.channels_last)
        targets = torch.rand(shape[0], 3, 2 * shape[2], 2 * shape[3])
        times: dict[Mode, list[float]] = {mode: [] for mode in MODES}
        for mode in MODES * (ROUNDS + 1):  # interleaved; the first round warms up
            times[mode].append(seconds(network, inputs, targets, mode))
        base = statistics.median(times[MODES[0]][1:])
        print(f"{label}: {1e3 * base:.0f} ms a step in float32 with one thread; times as shares of it:")
        for mode in MODES:
            shares = sorted(value / base for value in times[mode][1:])
            print(f"  {mode}: {statistics.median(shares):.2f} [{shares[0]:.2f}, {shares[-1]:.2f}]")


if __name__ == "__main__":
    main()
