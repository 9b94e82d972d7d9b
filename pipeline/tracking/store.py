"""The MLflow store: where it is, whether it can be used, how it is made, and what is said when it is lost.

It is `mlflow.db` beside dvc.yaml, or what MLFLOW_TRACKING_URI names.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote

from alembic.util import CommandError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline import stores
from pipeline.errors import UserError
from pipeline.files import destination
from pipeline.tracking import views
from pipeline.tracking.processes import close_orphaned_runs

# MLflow and Alembic log every table that they make
for chatty in ("mlflow", "alembic"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
# and what SQL failed, that a server is tried again, and that Databricks knows nobody: our own sentence is enough
for chatty in ("mlflow.store", "mlflow.utils", "urllib3", "sqlalchemy"):
    logging.getLogger(chatty).setLevel(logging.CRITICAL)

EXPERIMENT = "architecture-aware pruning"
VIEWS = "Lists to begin with: *Views*, above on the right, in *Model training*."


def root() -> Path:
    """The repository that the store belongs to; a queued DVC experiment runs in a copy and names the original."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def address() -> str:
    """The store's address, as MLflow takes it."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root() / 'mlflow.db'}"


class StoreLostError(UserError):
    """The store could be used when the stage began, and now it can't."""


@contextmanager
def answers() -> Iterator[None]:
    """One sentence where the store is lost during the work, which needs only .scratch and results to go on."""
    uri = address()
    try:
        stores.probe(uri)  # an open connection would go on writing into a file that was deleted
        yield
    except (stores.UnusableError, MlflowException, SQLAlchemyError, OSError) as error:
        reason = stores.reason(error, uri)
        if "Current state is deleted" in reason:  # as MLflow says of a run and of an experiment
            raise StoreLostError(
                f"the MLflow store {stores.masked(uri)}: {reason}; what was trained is kept: when the experiment is "
                f"restored ({_restore()}), the same command goes on"
            ) from None
        raise StoreLostError(
            f"the MLflow store {stores.masked(uri)} was lost: {reason}; what was trained is kept: "
            "when it can be used again, the same command goes on"
        ) from None


def _restore(experiment: str = "ID") -> str:
    return f"mlflow experiments restore --experiment-id {experiment}, with MLFLOW_TRACKING_URI set to the store"


def client_and_experiment() -> tuple[MlflowClient, str]:
    """The store's client and the experiment's id; a sentence when the store can't be reached."""
    uri = address()
    if uri.startswith("http"):  # say so within seconds, not after MLflow's minutes of retries
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        if stores.sqlite_file(uri):  # a connection that is kept would see a file that is no longer there
            os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
        stores.probe(uri, absent=True)
        _create(uri)
        client = MlflowClient(uri, registry_uri=uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            artifacts = None if uri.startswith("http") else (root() / "mlartifacts").as_uri()
            experiment = client.get_experiment(client.create_experiment(EXPERIMENT, artifact_location=artifacts))
        _check_files(uri, _relocate(uri, experiment.artifact_location))
        if experiment.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {EXPERIMENT!r} of {stores.masked(uri)} was deleted: restore it "
                f"({_restore(experiment.experiment_id)}), or set MLFLOW_TRACKING_URI to another store"
            )
        if not {f"{views.PREFIX}{key}" for key in views.OF_ALL} <= experiment.tags.keys():
            save_views(client, experiment.experiment_id, views.OF_ALL)
        return client, experiment.experiment_id
    # ValueError: an address that is none; ImportError: of a database whose driver isn't there; CommandError: Alembic's,
    # of tables that it doesn't know
    except (
        stores.UnusableError, MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ValueError, ImportError,
        CommandError,
    ) as error:  # fmt: skip
        if schema := re.search(r"(?:found version |revision identified by ')(\w+)", str(error)):
            raise UserError(
                f"the MLflow store {stores.masked(uri)} has the tables of another MLflow (schema {schema[1]}): "
                "`mlflow db upgrade` changes older ones, and newer ones need a newer MLflow; MLFLOW_TRACKING_URI may "
                "name another store"
            ) from None
        raise UserError(
            f"the MLflow store {stores.masked(uri)} can't be reached: {stores.reason(error, uri)}; "
            "MLFLOW_TRACKING_URI must name a running server or a writable sqlite:/// file, whole or absent"
        ) from None


def save_views(client: MlflowClient, experiment: str, missing: dict[str, views.View]) -> None:
    """Save with the experiment the views that it doesn't have yet; one that somebody has changed there stays."""
    present = client.get_experiment(experiment).tags
    tags = views.tags(missing, int(1000 * time.time()))
    tags |= {"mlflow.note.content": VIEWS, "mlflow.experimentKind": "custom_model_development"}  # not pages of traces
    for key in tags.keys() - present.keys():
        client.set_experiment_tag(experiment, key, tags[key])


def _create(uri: str) -> None:
    """Make an absent SQLite store under another name and rename it: MLflow can't use one that was left half-made."""
    path = stores.sqlite_file(uri)
    if path is None or (path.exists() and path.stat().st_size):
        return
    path = Path(os.path.realpath(path))  # a link stays, as SQLite would leave it
    new = path.with_name(f".{path.name}.new")
    for left in path.parent.glob(f"{new.name}*"):  # by a process that was killed; its journal too
        left.unlink()
    MlflowClient(f"sqlite:///{new}").search_experiments()
    os.replace(new, path)


HOME = "/mlartifacts"  # where the experiment's files lie, below the folder of its store
PLACES = {  # MLflow's columns that hold absolute places
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def _relocate(uri: str, location: str) -> str:
    """Tell the store in this folder that it lies here, where the folder was moved or copied since it was made.

    location: of the experiment's files, as the store has it; returns where they lie now. Another store than the
    folder's own stays as it is.
    """
    path, here = stores.sqlite_file(uri), root()
    if path is None or path.resolve() != here / "mlflow.db" or not location.endswith(HOME):
        return location
    before = location.removesuffix(HOME)
    if not before.startswith("file://") or before == here.as_uri():
        return location
    moves = [(before, here.as_uri()), (unquote(before.removeprefix("file://")), str(here))]
    with closing(sqlite3.connect(path, timeout=stores.LOCKED_SECONDS)) as database, database:
        for old, new in moves:
            for table, columns in PLACES.items():
                for column in columns:
                    database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, len(old) + 1, f"{old}/"),
                    )
    return here.as_uri() + HOME


def _check_files(uri: str, location: str) -> None:
    """UserError when something that is no folder stands where the experiment's files will lie on this machine."""
    kind, _, path = location.rpartition("://")
    if kind in ("", "file") and not uri.startswith("http"):
        destination(Path(unquote(path) if kind else path), folder=True)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """One process at a time: two that make the tables together crash, and two parents come of making the parent run."""
    try:
        (root() / ".scratch").mkdir(exist_ok=True)
        lock = open(root() / ".scratch" / "tracking.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{root() / '.scratch'} can't be written: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def page(server: str) -> str:
    """Where a server of the store shows the view to begin with; its first page where the store can't be written."""
    try:
        with one_at_a_time():
            client, experiment = client_and_experiment()
            with answers():
                close_orphaned_runs(client, experiment)
    except UserError as error:
        return f"{server} ({error})"
    return f"{server}/#/experiments/{experiment}/runs?viewStateShareKey={views.COMPARE}&workflowType=machine_learning"
