"""A study in MLflow: its own run, and a run below it for each trial of a worker."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from pipeline import records
from pipeline.files import digest
from pipeline.study import results, sampler, worker
from pipeline.study.definition import Study
from pipeline.study.slots import kept
from pipeline.study.trial import CannotWinError, Outcome, Report, Values, measure
from pipeline.tracking import runs
from pipeline.tracking.run import Run, note


def begin(study: Study, command: str) -> Run:
    """The study's run, made or continued. command: what begins or continues the study."""
    note = f"Optuna study: {runs.GOAL}; {study.network}, method {study.method}. Its trials are the runs below it."
    return runs.study(study.name, {"mlflow.note.content": note, "reproduce": command})


def finish(run: Run, rows: list[dict[str, Any]], best: FrozenTrial | None, files: list[Path]) -> None:
    """End the study's run with its figures. rows: its table; best: the winner, if one holds; files: its artifacts."""
    for path in files:
        run.artifact(path)
    figures = {"trials": float(len(results.finished(rows))), "saved_share": results.saved_share(rows)}
    run.metrics(figures | ({"mac_percent": kept(best)} if best else {}))
    run.end()


def work(study: Study, control: list[records.Point], scratch: Path) -> None:
    """Run trials until the study has its total. control: as of Study.problem; scratch: where unfinished trials lie."""
    opened, problem = study.open(), study.problem(control)
    space = sampler.distributions(study.params.search.space)
    defaults = {key: getattr(study.settings, key) for key in space}
    parent = runs.study(study.name, {})

    def run(number: int, values: Values, report: Report) -> Outcome:
        tags = {"level": "trial", "network": study.network, "method": study.method}
        child = parent.child(f"trial {number}", tags | note("trial", study.network, study.method))
        child.params(values)
        folder = scratch / f"search-{digest(study.name, opened.user_attrs['baseline'], values)}"
        folder.mkdir(parents=True, exist_ok=True)
        step = 0  # of the trial's end: one after its last iteration's, whose figures have the same names

        def follow(iteration: Any, total: int) -> None:
            nonlocal step
            step = iteration.number + 1
            child.metrics(runs.iteration_figures(iteration, total), iteration.number)

        try:
            outcome = measure(problem, values, folder, report, follow)
        except CannotWinError as error:
            child.tags({"reason": f"{error}"})
            child.metrics({"mac_percent": error.mac_percent} | error.notes, step)
            child.end()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException as error:
            child.fail(error, "reason")
            raise
        figures = {"mac_percent": outcome.mac_percent, "feasible": float(outcome.feasible)}
        child.metrics(figures | outcome.notes, step)
        child.tags({"feasible": "yes" if outcome.feasible else "no"})
        child.end()
        shutil.rmtree(folder, ignore_errors=True)
        return outcome

    proposals = sampler.Proposals(space, study.params.seed, defaults)
    worker.work(opened, run, proposals, study.trials, problem.constraints)
