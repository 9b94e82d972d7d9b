"""How many more steps a second two processes make than one at the same batch, and what torchrun costs one: ratios.

    python benchmarks/devices.py

EDSR 8x32 by the training loop, 16 patches of 24 pixels a step, one thread a process. Each round runs the three one
after another; the medians of the rounds count. The targets are 1.7 and 2%. Beside other work the ratios say little: two
processes then share the cores with it, and one has a core for itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch  # noqa: E402

from pipeline import config, networks  # noqa: E402
from pipeline.data import storage  # noqa: E402
from pipeline.data.dataset import load_images  # noqa: E402
from pipeline.prepare import layouts, pairs  # noqa: E402
from pipeline.training import devices, loop  # noqa: E402
from pipeline.training.device import choose  # noqa: E402

ROUNDS, STEPS, WARM = 5, 120, 20
RECIPE = {"steps": STEPS, "batch": 16, "patch": 24, "validate_every": STEPS}
TORCHRUN = ["-m", "torch.distributed.run", "--master-port=0", "--nproc-per-node"]
CASES = {"plain": [], "torchrun 1": [*TORCHRUN, "1"], "torchrun 2": [*TORCHRUN, "2"]}


def steps(folder: Path) -> None:
    """One process of a training; rank 0 prints the median time of a step, in seconds."""
    params = config.read(ROOT / "params.yaml")
    machine, images = choose("cpu", 1, params.precision), load_images(folder, "cpu")
    torch.manual_seed(1)
    network = networks.build("edsr", {"scale": 2, "blocks": 8, "channels": 32})
    several, rank, at = int(os.environ.get("WORLD_SIZE", "1")) > 1, 0, list[float]()
    with contextlib.ExitStack() as stack:
        if several:
            rank = stack.enter_context(devices.joined(1, [], machine, {}))
        if rank:
            return loop.serve(images, machine)
        recipe = params.train["edsr"].model_copy(update=RECIPE)
        loop.fit(network, images, recipe, machine, seed=1, tick=lambda step, psnr: at.append(time.perf_counter()))
    print(statistics.median(end - start for start, end in itertools.pairwise(at[WARM:])))


def main() -> None:
    if len(sys.argv) > 1:
        return steps(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as name:
        part = layouts.checked(config.read(ROOT / "params.yaml"), "edsr").parts["train"]
        storage.save_split(Path(name) / "edsr", *pairs.make(part.sources, part.making))
        times: dict[str, list[float]] = {case: [] for case in CASES}
        load = os.getloadavg()[0]
        for _, (case, words) in itertools.product(range(ROUNDS), CASES.items()):
            command = [sys.executable, *words, __file__, f"{name}/edsr"]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            times[case].append(float(done.stdout))
    plain = statistics.median(times["plain"])
    print(f"one process: {1e3 * plain:.1f} ms a step; {load:.1f} processes wanted the cores before (load)")
    pairs_of = {case: sorted(a / b for a, b in zip(times["plain"], times[case], strict=True)) for case in times}
    for case, says in (("torchrun 2", "two processes make {:.2f}"), ("torchrun 1", "one under torchrun makes {:.3f}")):
        ratios = pairs_of[case]
        middle = says.format(statistics.median(ratios))
        print(f"{middle} times the steps a second of one [{ratios[0]:.3f}, {ratios[-1]:.3f}], {ROUNDS} rounds")


if __name__ == "__main__":
    main()
