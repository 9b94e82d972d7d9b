"""Hostile places: what is no file, or another one's, where a command reads or DVC writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from runner import Hostile, base, check, copied


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something else where a file or nothing is."""

    def put(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)

    return put


def to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def a_file_for_mlflows_files(folder: Path) -> None:
    instead(".scratch/tracking.lock", Path.touch)(folder)
    (folder / "mlartifacts").touch()


def store_in_a_pipe(folder: Path) -> None:
    instead(".scratch/tracking.lock", Path.touch)(folder)  # of a stage that ran before
    os.mkfifo(folder / "mlflow.db")


SPLITS, LOCK, BUSY, CHECK = "data/photos/splits.json", "dvc.lock", ".dvc/tmp/rwlock", "stages.check"
CASES = [
    Hostile("splits in a pipe", CHECK, ("splits.json", "no regular file"), make=instead(SPLITS, os.mkfifo)),
    Hostile("splits behind a dead link", CHECK, ("splits.json", "No such file"), make=instead(SPLITS, to_nothing)),
    Hostile("a split twice", CHECK, ("splits.json", "'train' stands twice"),
            make=instead(SPLITS, lambda path: path.write_text('{"train": ["a"], "train": ["b"]}'))),
    Hostile("parameters in a pipe", CHECK, ("params.yaml", "no regular file"), make=instead("params.yaml", os.mkfifo)),
    Hostile("parameters without end", CHECK, ("params.yaml", "no regular file"),
            make=instead("params.yaml", lambda path: path.symlink_to("/dev/zero"))),
    Hostile("a folder as dvc.lock", CHECK, ("dvc.lock is no regular file",), make=instead(LOCK, Path.mkdir)),
    Hostile("another DVC's dvc.lock", CHECK, ("dvc.lock has schema '3.0'", "git checkout"),
            make=instead(LOCK, lambda path: path.write_text("schema: '3.0'\nstages: {}\n"))),
    Hostile("a full folder as rwlock", CHECK, ("rwlock is no regular file",),
            make=instead(BUSY, lambda path: (path / "x").mkdir(parents=True))),
    Hostile("a file as results", CHECK, ("results", "can't be written"), make=instead("results", Path.touch)),
    Hostile("a file as scratch", CHECK, (".scratch", "can't be written"), make=instead(".scratch", Path.touch)),
    Hostile("a file as a stage's folder", CHECK, ("results/train can't be written", "folder"),
            make=instead("results/train", Path.touch)),
    Hostile("a file as a network's folder", CHECK, ("results/control/edsr can't be written", "folder"),
            make=instead("results/control/edsr", Path.touch)),
    Hostile("a file as a method's folder", CHECK, ("results/prune/edsr/D can't be written", "folder"),
            make=instead("results/prune/edsr/D", Path.touch)),
    Hostile("a file as MLflow's folder", CHECK, ("mlartifacts can't be written", "folder"),
            make=instead("mlartifacts", Path.touch)),
    Hostile("a file as the trainings' folder", CHECK, (".scratch/trainings can't be written", "folder"),
            make=instead(".scratch/trainings", Path.touch)),
    Hostile("a file as DVC's cache", CHECK, (".dvc/cache is no folder",), make=instead(".dvc/cache", Path.touch)),
    Hostile("a file as DVC's scratch", CHECK, (".dvc/tmp is no folder",), make=instead(".dvc/tmp", Path.touch)),
    Hostile("a store in a pipe", "stages.prepare edsr", ("mlflow.db", "no regular file"),
            make=store_in_a_pipe),
    Hostile("a file for MLflow's files", "stages.prepare edsr", ("mlartifacts can't be written", "folder"),
            make=a_file_for_mlflows_files),
    Hostile("a table in a pipe", f"{CHECK} --results", ("table.md", "no regular file"),
            make=instead("results/report/table.md", os.mkfifo)),
]  # fmt: skip


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_place_ends_in_one_sentence(case: Hostile, origin: Path, tmp_path: Path) -> None:
    check(case, copied(origin, tmp_path / "chain"))
