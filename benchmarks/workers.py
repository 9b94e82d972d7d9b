"""What four workers gain over one where a study's trials only sleep, on PostgreSQL if it is installed, else on SQLite.

    python benchmarks/workers.py

Sleeping trials need no core: what is left is what storage and waiting for each other cost. Points are drawn at random,
as a study that meets a point again doesn't run it twice.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import postgres  # noqa: E402

from pipeline.study.storage import open_study  # noqa: E402

TRIALS, SECONDS, ROUNDS = 48, 2.0, 3


def seconds(storage: str, name: str, workers: int, folder: Path) -> float:
    """From the first trial's beginning to the last worker's end: the start of Python isn't counted."""
    log = folder / f"{name}.log"
    words = [sys.executable, str(ROOT / "tests/study/search_worker.py"), storage, name]
    words += [str(TRIALS), str(SECONDS), "20", str(log), "random"]
    open_study(storage, name, {"baseline": "one"})
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(words, env=environment) for _ in range(workers)]
    while not log.exists():
        time.sleep(0.01)
    began = time.monotonic()
    for process in running:
        process.wait()
    return time.monotonic() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = bool(postgres.installed())
        storage = stack.enter_context(postgres.served(folder)) if server else f"sqlite:///{folder / 'search.db'}"
        shares = []
        for number in range(ROUNDS):
            alone = seconds(storage, f"one-{number}", 1, folder)
            shares.append(seconds(storage, f"four-{number}", 4, folder) / alone)
        print(
            f"{'PostgreSQL' if server else 'SQLite'}, {TRIALS} trials that sleep for {SECONDS:g} s: four workers take "
            f"{statistics.median(shares):.2f} of one's time [{min(shares):.2f}, {max(shares):.2f}]"
        )


if __name__ == "__main__":
    main()
