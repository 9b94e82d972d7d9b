"""What a training step takes where glibc keeps the memory that it frees, as the pipeline asks it to: ratios.

    python benchmarks/kept_memory.py

The small preset's networks, batches and patches, one thread, in the precision that `auto` takes here. Each round runs
both cases in a process of its own, one after the other, and compares processor time, in which Linux's clearing of
pages counts too.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from pipeline import networks
from pipeline.training import device

ROUNDS, STEPS, WARM = 5, 40, 5
CASES = {
    "edsr": ({"blocks": 4, "channels": 32}, (8, 3, 24, 24)),
    "sid": ({"base": 16}, (4, 4, 32, 32)),
}


def steps(name: str, keeps: bool) -> None:
    """Print the processor time of a step, in seconds."""
    if not keeps:
        device._keep_memory = lambda: None  # type: ignore[assignment]
    machine = device.choose("cpu", 1, "auto")
    args, shape = CASES[name]
    network = networks.build(name, args).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = torch.rand(shape).contiguous(memory_format=torch.channels_last)
    targets = torch.rand(shape[0], 3, 2 * shape[2], 2 * shape[3])
    optimizer = torch.optim.Adam(network.parameters())
    began = 0.0
    for step in range(WARM + STEPS):
        if step == WARM:
            began = _processor_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=machine.bf16):
            outputs = network(inputs)
        optimizer.zero_grad()
        (outputs.float() - targets).abs().mean().backward()
        optimizer.step()
    print((_processor_time() - began) / STEPS)


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    if len(sys.argv) > 1:
        return steps(sys.argv[1], sys.argv[2] == "keeps")
    for name in CASES:
        rounds = [[_measured(name, case) for case in ("gives back", "keeps")] for _ in range(ROUNDS)]
        plain, ratios = statistics.median(took for took, _ in rounds), sorted(keeps / took for took, keeps in rounds)
        middle = f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        print(f"{name}: {1e3 * plain:.1f} ms a step; kept memory takes {middle} of it")


def _measured(name: str, case: str) -> float:
    command = [sys.executable, __file__, name, case]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
