"""The workers of a study: processes that are started, replaced when they die, and shown with the trials done so far."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence

import optuna

from pipeline.errors import UserError
from pipeline.progress import Trials
from pipeline.study import slots
from pipeline.study.definition import Study

WORKER_DEATHS = 3  # more end the study: the cause is in what the workers printed


def watch(study: Study, opened: optuna.Study, command: Sequence[str], workers: int) -> None:
    """Run at most so many workers until the study has its trials. One that dies is replaced, WORKER_DEATHS times.

    command: starts one worker. UserError when a worker ended with one, or too many died.
    """
    progress = Trials(f"search {study.network} {study.method}", study.trials)
    running = [subprocess.Popen(command) for _ in range(min(workers, study.trials - over(study, opened)))]
    deaths, progress.failed = 0, set(slots.failures(opened))
    try:
        while running:
            time.sleep(0.5)
            show(study, opened, progress)
            for worker in [worker for worker in running if worker.poll() is not None]:
                running.remove(worker)
                if worker.returncode == 2:
                    raise UserError("a worker ended with the sentence above; the same command goes on")
                if worker.returncode:
                    deaths += 1
                    if deaths > WORKER_DEATHS:
                        raise UserError(f"{deaths} workers died, the last with status {worker.returncode}")
                    progress.say(f"a worker died (status {worker.returncode}); another goes on with its trial")
                    running.append(subprocess.Popen(command))
        show(study, opened, progress)
    finally:
        for worker in running:
            worker.send_signal(signal.SIGINT)
        for worker in running:
            worker.wait()
        progress.close()


def show(study: Study, opened: optuna.Study, progress: Trials) -> None:
    """Say which trials failed since the last time, how many are done, and the best of them."""
    for number, reason in slots.failures(opened).items():
        if number not in progress.failed:
            progress.failed.add(number)
            progress.say(f"trial {number} failed: {reason}")
    best = slots.winner(opened)
    words = "none holds the gate yet"
    if best is not None:
        words = f"best {best.value:.1f}% of the MACs, PSNR {best.user_attrs['psnr_change']:+.4f} dB"
    progress.show(over(study, opened), words)


def over(study: Study, opened: optuna.Study) -> int:
    """Trials done."""
    return sum(slots.over(trial) for trial in slots.slots(opened, study.trials).values())
