"""Search the settings of `prune` for the fewest MACs at no loss of PSNR: an Optuna study beside the chain."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType

from pipeline import config, records
from pipeline.cli import Parser, guarded
from pipeline.errors import UserError
from pipeline.study.definition import Study
from stages.command import end_with_parent, writable
from stages.common import RESULTS, SCRATCH, control_of

STORAGE = "STUDY_STORAGE"  # tells a worker its storage: everybody can read the command line of a process
MOST = 256  # workers on one machine: each is a process with torch in it


def main() -> None:
    parser = Parser(prog="python -m stages.search", description=__doc__)
    parser.add_argument("--network", help="of params.yaml; without it, search.network")
    parser.add_argument("--method", help="of methods; without it, search.method")
    parser.add_argument("--trials", type=int, help="in total, those of earlier calls included")
    parser.add_argument("--storage", help="sqlite:///FILE (search.db without it) or postgresql+psycopg://…")
    parser.add_argument("--study", help="its name; without it, made of the network, the method and the parameters")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine")
    parser.add_argument("--apply", action="store_true", help="write the winner into params.yaml")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # the process that began it
    with guarded("search"):
        arguments = parser.parse_args()
        if arguments.worker:  # Ctrl-C comes from the terminal, and again from the process that began this one
            signal.signal(signal.SIGINT, _once)
        params = config.read()
        study = definition(params, arguments)
        from pipeline.study.storage import answers

        with answers():
            if arguments.worker:
                end_with_parent(arguments.worker)
                from pipeline.study import logged

                logged.work(study, control_of(params, study.network), SCRATCH)
            else:
                search(study, arguments.workers, arguments.apply)


def _once(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C stops; another one would end in a traceback while this is said."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def definition(params: config.Params, arguments: argparse.Namespace) -> Study:
    """The study that the command line and params.yaml ask for."""
    from pipeline.tracking.store import root

    if not 1 <= arguments.workers <= MOST:
        raise UserError(f"--workers is {arguments.workers}; 1 to {MOST} are allowed")
    storage = os.environ.get(STORAGE) if arguments.worker else arguments.storage
    return Study(
        params,
        arguments.network or params.search.network,
        arguments.method or params.search.method,
        params.search.trials if arguments.trials is None else arguments.trials,
        storage or f"sqlite:///{root() / 'search.db'}",
        RESULTS,
        arguments.study,
    )


def search(study: Study, workers: int, apply: bool) -> None:
    """Run the study's workers to the end, write its table and figures, and print its winner."""
    writable(RESULTS)
    os.environ[STORAGE] = study.storage
    records.read(RESULTS / "train" / study.network / "metrics.json", records.Baseline)
    control_of(study.params, study.network)
    from pipeline.study import logged, results, slots, watch, winner

    opened = study.open()  # before the workers: tables made by two at once are made by none
    words = ["--network", study.network, "--method", study.method, "--trials", str(study.trials)]
    run = logged.begin(study, " ".join(["python -m stages.search", *words]))
    command = [sys.executable, "-m", "stages.search", "--worker", str(os.getpid()), *words, "--study", study.name]
    try:
        watch.watch(study, opened, command, workers)
    except BaseException as error:
        run.fail(error)
        raise
    rows = results.table(opened, study.trials)
    files = results.write(study.folder, rows, results.importances(opened))
    logged.finish(run, rows, slots.winner(opened), files)
    winner.report(study, opened, rows, apply)


if __name__ == "__main__":
    main()
