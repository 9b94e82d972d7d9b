"""Search the numbers of `prune` for the fewest MACs that lose no PSNR: an Optuna study against the chain's baseline."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.errors import UserError
from pipeline.files import read_json, write_bytes, write_json
from stages.common import RESULTS, guarded, writable
from stages.study import Study, work

WORKER_DEATHS = 3  # after so many, each worker's last words are worth reading


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.search", description=__doc__)
    parser.add_argument("--network", help="of params.yaml; without it, search.network")
    parser.add_argument("--method", help="of prune.methods; without it, search.method")
    parser.add_argument("--trials", type=int, help="in total, those of earlier calls included")
    parser.add_argument("--storage", help="sqlite:///FILE (search.db without it) or postgresql+psycopg://…")
    parser.add_argument("--study", help="its name; without it, made of the network, the method and the parameters")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine")
    parser.add_argument("--apply", action="store_true", help="write the winner into params.yaml")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # the process that began it
    given = parser.parse_args()
    with guarded("search"), stores_answer():
        (work if given.worker else search)(Study(config.read(), given))


@contextmanager
def stores_answer() -> Iterator[None]:
    """A store that is lost on the way is one sentence, as at the start."""
    from mlflow.exceptions import MlflowException
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, StorageInternalError, SQLAlchemyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"a store was lost ({reason}); when it is back, the same command goes on") from None


def search(study: Study) -> None:
    """Start the workers, show how far they are, tell the winner."""
    from pipeline import search as optuna_search
    from pipeline import tracking

    writable(RESULTS)
    for key in ("train", "control"):
        read_json(RESULTS / key / study.network / "metrics.json")
    opened = study.open()  # before the workers: tables made by two at once are made by none
    note = f"Optuna study: {tracking.GOAL}; {study.network}, method {study.method}. Its trials are the runs below it."
    command = f"python -m stages.search --network {study.network} --method {study.method} --trials {study.trials}"
    above = tracking.study(study.name, {"mlflow.note.content": note, "reproduce": command})
    try:
        watch(study, opened)
    except BaseException as error:
        above.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    rows = optuna_search.table(opened, study.trials)
    write_json(study.folder / "trials.json", rows)
    write_json(study.folder / "importances.json", optuna_search.importances(opened))
    from pipeline.study_figures import study_pictures

    for path in (study.folder / "trials.json", *study_pictures(study.folder)):
        above.artifact(path)
    finished = [row for row in rows if row["state"] in ("complete", "pruned")]
    saved = sum(row.get("saved_share", 0.0) for row in finished) / max(1, len(finished))
    best = optuna_search.winner(opened)
    above.metrics({"trials": len(finished), "saved_share": saved} | ({"mac_kept": best.value} if best else {}))
    above.end()
    tell(study, optuna_search, opened, best, rows, saved)


def tell(study: Study, optuna_search: Any, opened: Any, best: Any, rows: list[dict[str, Any]], saved: float) -> None:
    """The winner, and what to do with it."""
    print(f"search: {study.name}: {len(rows)} trials, {100 * saved:.0f}% of their steps saved; {study.folder}/")
    failed = [row for row in rows if row["state"] == "fail"]
    for row in failed:
        print(f"search: trial {row['trial']} failed twice: {row.get('reason', 'its worker was killed')}")
    if best is None:
        close = optuna_search.nearest(opened)
        if close is None:
            raise UserError("no trial was finished; their reasons stand above")
        raise UserError(
            f"no trial holds; the nearest, {close.number}, keeps {100 * close.value:.1f}% of the MACs and misses by "
            f"{max(close.constraints.values()):.4f} ({_words(close.params)})"
        )
    drops = ", ".join(
        f"{best.user_attrs[f'psnr_drop_{name}']:+.4f} dB against the {name}" for name in ("baseline", "control")
    )
    print(f"search: trial {best.number} wins: {100 * best.value:.1f}% of the MACs, drop {drops} (validation)")
    print(f"search: {_words(best.params)}")
    settings = " ".join(f"-S prune.{key}={value!r}" for key, value in best.params.items())
    alone = f"-S 'run.networks=[{study.network}]' -S 'run.methods=[{study.method}]'"  # what was searched, no more
    print(f"search: the chain with it: dvc exp run {alone} {settings}")
    if study.given.apply:
        apply(Path("params.yaml"), best.params)
        print("search: params.yaml has it now: dvc repro")


def _words(values: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in values.items())


def apply(path: Path, values: dict[str, float]) -> None:
    """Set numbers of `prune` in a parameter file; its comments and its layout stay."""
    import io

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    content = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in values.items():
        content["prune"][key] = value
    written = io.StringIO()
    yaml.dump(content, written)
    write_bytes(path, written.getvalue().encode())


def watch(study: Study, opened: Any) -> None:
    """Run the workers until the study has its trials; one that dies is replaced, as long as that isn't the rule."""
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
    words += ["--trials", str(study.trials), "--storage", study.storage, "--study", study.name]
    shown = Trials(f"search {study.network} {study.method}", study.trials)
    workers = [subprocess.Popen(words) for _ in range(study.given.workers)]
    deaths = 0
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

    done = sum(optuna_search.over(trial) for trial in optuna_search.slots(opened, study.trials).values())
    best = optuna_search.winner(opened)
    words = "none holds yet"
    if best is not None:
        words = f"best {100 * best.value:.1f}% of the MACs, drop {best.user_attrs['psnr_drop']:+.4f} dB"
    shown.show(done, words)


if __name__ == "__main__":
    main()
