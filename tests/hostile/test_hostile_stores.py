"""Hostile stores: what can't be used is said at once, and no password with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from runner import Hostile, base, check, copied


def beside_the_lock(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put the thing where the store would be; the lock of the stages is there, as after any stage."""

    def put(folder: Path) -> None:
        (folder / ".scratch").mkdir()
        (folder / ".scratch" / "tracking.lock").touch()
        make(folder / "here.db")

    return put


def of_another_mlflow(path: Path) -> None:
    with sqlite3.connect(path) as store:
        store.executescript(
            "CREATE TABLE alembic_version (version_num VARCHAR(32)); INSERT INTO alembic_version VALUES ('newer');"
            + "".join(f"CREATE TABLE {name} (x);" for name in ("experiments", "runs", "metrics", "params", "tags"))
        )
    store.close()


STORE = (("MLFLOW_TRACKING_URI", "sqlite:///here.db"),)
SERVER = (("MLFLOW_TRACKING_URI", "postgresql+psycopg://u:p@ss/secret@127.0.0.1:1/x"),)
CASES = [
    Hostile("a folder as store", "stages.train edsr", ("sqlite:///here.db", "it is a folder", "whole or absent"),
            make=beside_the_lock(Path.mkdir), environment=STORE),
    Hostile("a text as store", "stages.train edsr", ("sqlite:///here.db", "not a database", "whole or absent"),
            make=beside_the_lock(lambda path: path.write_text("no database\n" * 99)), environment=STORE),
    Hostile("a store of another MLflow", "stages.train edsr", ("here.db has the tables of another", "(schema newer)"),
            make=beside_the_lock(of_another_mlflow), environment=STORE),
    Hostile("a server that isn't there", "stages.train edsr", ("postgresql+psycopg://***@127.0.0.1:1/x", "reached"),
            make=beside_the_lock(lambda path: None), environment=SERVER),
    Hostile("a store of Databricks", "stages.train edsr", ("store databricks can't be reached", "Databricks"),
            make=beside_the_lock(lambda path: None), environment=(("MLFLOW_TRACKING_URI", "databricks"),)),
    Hostile("a store where nobody can write", "stages.train edsr", ("sqlite:////proc/x.db", "/proc can't be written"),
            make=beside_the_lock(lambda path: None), environment=(("MLFLOW_TRACKING_URI", "sqlite:////proc/x.db"),)),
    Hostile("a store that is a device", "stages.train edsr", ("sqlite:////dev/null", "no regular file"),
            make=beside_the_lock(lambda path: None), environment=(("MLFLOW_TRACKING_URI", "sqlite:////dev/null"),)),
    Hostile("a password behind a mistyped option", "stages.search --storge postgresql://u:secret@h/x?password=secret",
            ("--storge postgresql://***@h/x?password=***",)),
]  # fmt: skip


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_hostile_store_ends_in_one_sentence(case: Hostile, origin: Path, tmp_path: Path) -> None:
    check(case, copied(origin, tmp_path / "chain"))
