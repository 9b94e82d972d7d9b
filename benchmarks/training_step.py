"""How long a training step takes in float32 and bfloat16, with one thread and two: ratios, interleaved, medians.

    python benchmarks/training_step.py

The chain trains in one thread, its two networks side by side, and in bfloat16 where the processor has it; this prints
what each choice gains here. Images are random: the arithmetic doesn't know.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
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


def seconds(network: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor, bf16: bool, threads: int) -> float:
    """Mean time of a step, forwards and backwards."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = network(inputs)
        (outputs.float() - targets).abs().mean().backward()
    return (time.perf_counter() - began) / STEPS


def main() -> None:
    modes = list(itertools.product((False, True), (1, 2)))
    for label, (name, args, shape) in CASES.items():
        network = networks.build(name, args).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = torch.rand(shape).contiguous(memory_format=torch.channels_last)
        targets = torch.rand(shape[0], 3, 2 * shape[2], 2 * shape[3])
        times: dict[tuple[bool, int], list[float]] = {mode: [] for mode in modes}
        for bf16, threads in modes * (ROUNDS + 1):  # interleaved; the first round warms up
            times[bf16, threads].append(seconds(network, inputs, targets, bf16, threads))
        base = statistics.median(times[False, 1][1:])
        print(f"{label}: {1e3 * base:.0f} ms a step in float32 with one thread; times as shares of it:")
        for bf16, threads in modes:
            shares = sorted(value / base for value in times[bf16, threads][1:])
            middle = statistics.median(shares)
            kind = "bfloat16" if bf16 else "float32"
            print(f"  {kind}, {threads} thread{'s' * (threads > 1)}: {middle:.2f} [{shares[0]:.2f}, {shares[-1]:.2f}]")


if __name__ == "__main__":
    main()
