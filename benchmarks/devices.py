"""How many more steps a second two processes make than one at the same batch, and what torchrun costs one: ratios.

    python benchmarks/devices.py

EDSR 8x32 by the training loop, 16 patches of 24 pixels a step, one thread a process. Each round runs all cases one
after another; the medians of the rounds count. The targets are 1.7 and 2%. Two trainings apart, each with half of the
batch and nothing to exchange, say what the machine's two cores can do at all. Beside other work the ratios say little:
two processes then share the cores with it, and one has a core for itself.
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
BATCH = 16
RECIPE = {"steps": STEPS, "patch": 24, "validate_every": STEPS}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
CASES = {"plain": [], "torchrun 1": [*TORCHRUN, "1"], "torchrun 2": [*TORCHRUN, "2"], "apart": []}


def steps(folder: Path, batch: int) -> None:
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
        recipe = params.train["edsr"].model_copy(update=RECIPE | {"batch": batch})
        loop.fit(network, images, recipe, machine, seed=1, tick=lambda step, psnr: at.append(time.perf_counter()))
    print(statistics.median(end - start for start, end in itertools.pairwise(at[WARM:])))


def measured(case: str, folder: Path) -> float:
    """Seconds of a step of a case; of two trainings apart, the slower one's."""
    batches = [BATCH // 2, BATCH // 2] if case == "apart" else [BATCH]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, *CASES[case], __file__, str(folder), str(batch)],
            env=environment, stdout=subprocess.PIPE, text=True,
        )
        for batch in batches
    ]  # fmt: skip
    return max(float(child.communicate()[0]) for child in children)


def main() -> None:
    if len(sys.argv) > 1:
        return steps(Path(sys.argv[1]), int(sys.argv[2]))
    with tempfile.TemporaryDirectory() as name:
        part = layouts.checked(config.read(ROOT / "params.yaml"), "edsr").parts["train"]
        storage.save_split(Path(name) / "edsr", *pairs.make(part.sources, part.making))
        times: dict[str, list[float]] = {case: [] for case in CASES}
        load = os.getloadavg()[0]
        for _, case in itertools.product(range(ROUNDS), CASES):
            times[case].append(measured(case, Path(name) / "edsr"))
    plain = statistics.median(times["plain"])
    print(f"one process: {1e3 * plain:.1f} ms a step; {load:.1f} processes wanted the cores before (load)")
    pairs_of = {case: sorted(a / b for a, b in zip(times["plain"], times[case], strict=True)) for case in times}
    for case, says in (
        ("torchrun 2", "two processes make {:.2f}"),
        ("apart", "two trainings apart, of half the batch each, make {:.2f}"),
        ("torchrun 1", "one under torchrun makes {:.3f}"),
    ):
        ratios = pairs_of[case]
        middle = says.format(statistics.median(ratios))
        print(f"{middle} times the steps a second of one [{ratios[0]:.3f}, {ratios[-1]:.3f}], {ROUNDS} rounds")


if __name__ == "__main__":
    main()
