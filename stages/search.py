"""Search the numbers of `prune` for the fewest MACs that lose no PSNR: an Optuna study against the chain's baseline."""

from __future__ import annotations

import argparse
import os

from pipeline import config, records
from pipeline.cli import Parser, guarded
from pipeline.files import write_json
from stages.command import writable
from stages.common import RESULTS, control_of
from stages.study import STORAGE, Study
from stages.study.watch import stores_answer, watch
from stages.study.winner import tell
from stages.study.worker import work


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
    with guarded("search"), stores_answer():
        given = parser.parse_args()
        (work if given.worker else search)(Study(config.read(), given))


def search(study: Study) -> None:
    """Start the workers, show how far they are, tell the winner."""
    from pipeline.study import search as optuna_search
    from pipeline.tracking import runs

    writable(RESULTS)
    os.environ[STORAGE] = study.storage
    records.read(RESULTS / "train" / study.network / "metrics.json", records.Baseline)
    control_of(study.params, study.network)
    opened = study.open()  # before the workers: tables made by two at once are made by none
    note = f"Optuna study: {runs.GOAL}; {study.network}, method {study.method}. Its trials are the runs below it."
    command = f"python -m stages.search --network {study.network} --method {study.method} --trials {study.trials}"
    above = runs.study(study.name, {"mlflow.note.content": note, "reproduce": command})
    try:
        watch(study, opened)
    except BaseException as error:
        above.fail(error)
        raise
    rows = optuna_search.table(opened, study.trials)
    write_json(study.folder / "trials.json", rows)
    write_json(study.folder / "importances.json", optuna_search.importances(opened))
    from pipeline.study.figures import study_pictures

    for path in (study.folder / "trials.json", *study_pictures(study.folder)):
        above.artifact(path)
    finished = [row for row in rows if row["state"] in ("complete", "pruned")]
    saved = sum(row.get("saved_share", 0.0) for row in finished) / max(1, len(finished))
    best = optuna_search.winner(opened)
    above.metrics({"trials": len(finished), "saved_share": saved} | ({"mac_kept": best.value} if best else {}))
    above.end()
    tell(study, optuna_search, opened, best, rows, saved)


if __name__ == "__main__":
    main()
