"""A worker of a study whose trials sleep: what the tests and benchmarks start several of, and kill."""

from __future__ import annotations

import sys
import time

from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler

from pipeline.study import worker
from pipeline.study.sampler import Proposals
from pipeline.study.storage import open_study
from pipeline.study.trial import Outcome, Report


def outcome(values: dict[str, float]) -> Outcome:
    """Fewest MACs at x = 0.3, of which only x >= 0.5 holds."""
    change = values["x"] - 0.5
    return Outcome(100 * abs(values["x"] - 0.3), {"psnr_beyond_limit": -change}, {"psnr_change": change})


def main(storage: str, name: str, trials: int, seconds: float, heartbeat: int, log: str, sampler: str = "") -> None:
    def run(number: int, values: dict[str, float], report: Report) -> Outcome:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"begun {number}\n")
        time.sleep(seconds)
        return outcome(values)

    study = open_study(storage, name, {"baseline": "one"}, heartbeat)
    make = RandomSampler if sampler == "random" else None  # never the same point twice: each trial really sleeps
    proposals = Proposals({"x": FloatDistribution(0, 1)}, 1, {"x": 0.9}, make)
    worker.work(study, run, proposals, trials, ("psnr_beyond_limit",), poll=0.2, grace=3 * heartbeat)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), *sys.argv[6:])
