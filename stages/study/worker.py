"""A worker: trials of one network and method until the study has its total."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from typing import Any

from pipeline.files import digest
from stages.common import SCRATCH
from stages.study import Study


def work(study: Study) -> None:
    """One worker: trials until the study has its total."""
    threading.Thread(target=end_with, args=(study.given.worker,), daemon=True).start()
    from pipeline import search, tracking
    from pipeline.trial import CannotWinError, measure

    opened, problem = study.open(), study.problem()
    space = search.distributions(study.params.search.space)
    defaults = {key: getattr(study.numbers, key) for key in space}
    above = tracking.study(study.name, {})

    def run(number: int, values: dict[str, float], report: Any) -> Any:
        tags = {"level": "trial", "network": study.network, "method": study.method}
        tags |= tracking.note("trial", study.network, study.method)
        child = above.child(f"trial {number}", tags)
        child.params(values)
        folder = SCRATCH / f"search-{digest(study.name, opened.user_attrs['baseline'], values)}"
        folder.mkdir(parents=True, exist_ok=True)

        def follow(iteration: Any, total: int) -> None:
            child.metrics(tracking.iteration_figures(iteration, total), iteration.number)

        try:
            outcome = measure(problem, values, folder, report, follow)
        except BaseException as error:
            if isinstance(error, CannotWinError):
                child.tags({"reason": f"{error}"})
                child.metrics({"mac_kept": error.mac_kept} | error.notes)
                child.end()
                shutil.rmtree(folder, ignore_errors=True)
            else:
                child.fail(error, "reason")
            raise
        child.metrics({"mac_kept": outcome.mac_kept, "feasible": float(outcome.feasible)} | outcome.notes)
        child.tags({"feasible": "yes" if outcome.feasible else "no"})
        child.end()
        shutil.rmtree(folder, ignore_errors=True)
        return outcome

    proposals = search.Proposals(space, study.params.seed, defaults)
    search.work(opened, run, proposals, study.trials, problem.constraints)


def end_with(parent: int) -> None:
    """Stop this worker, as by Ctrl-C, when the command that began it is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)
