"""The workers of a study, and how far they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline import stores
from pipeline.errors import UserError
from stages.study import Study

WORKER_DEATHS = 3  # after so many, each worker's last words are worth reading


@contextmanager
def stores_answer() -> Iterator[None]:
    """A store that is lost on the way is one sentence, as at the start."""
    from mlflow.exceptions import MlflowException
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, StorageInternalError, SQLAlchemyError) as error:
        reason = stores.reason(error)
        raise UserError(f"a store was lost ({reason}); when it is back, the same command goes on") from None


def watch(study: Study, opened: Any) -> None:
    """Run the workers until the study has its trials; one that dies is replaced, as long as that isn't the rule."""
    from pipeline import search as optuna_search
    from pipeline.progress import Trials

    words = [
        sys.executable,
        "-m",
        "stages.search",
        "--worker",
        str(os.getpid()),
        "--network",
        study.network,
        "--method",
        study.method,
    ]
    words += ["--trials", str(study.trials), "--study", study.name]
    shown = Trials(f"search {study.network} {study.method}", study.trials)
    workers = [subprocess.Popen(words) for _ in range(study.given.workers)]
    deaths, shown.failed = 0, set(optuna_search.failures(opened))
    try:
        while workers:
            time.sleep(1)
            show(study, opened, shown)
            for worker in [worker for worker in workers if worker.poll() is not None]:
                workers.remove(worker)
                if worker.returncode == 2:
                    raise UserError("a worker ended with the sentence above; the same command goes on")
                if worker.returncode:
                    deaths += 1
                    if deaths > WORKER_DEATHS:
                        raise UserError(f"{deaths} workers died, the last with status {worker.returncode}")
                    shown.say(f"a worker died (status {worker.returncode}); another goes on with its trial")
                    workers.append(subprocess.Popen(words))
        show(study, opened, shown)
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGINT)
        for worker in workers:
            worker.wait()
        shown.close()


def show(study: Study, opened: Any, shown: Any) -> None:
    """Trials done, and the best of them."""
    from pipeline import search as optuna_search

    for number, reason in optuna_search.failures(opened).items():
        if number not in shown.failed:
            shown.failed.add(number)
            shown.say(f"trial {number} failed: {reason}")
    done = sum(optuna_search.over(trial) for trial in optuna_search.slots(opened, study.trials).values())
    best = optuna_search.winner(opened)
    words = "none holds yet"
    if best is not None:
        words = f"best {100 * best.value:.1f}% of the MACs, drop {best.user_attrs['psnr_drop']:+.4f} dB"
    shown.show(done, words)
