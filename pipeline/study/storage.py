"""The database that a study lives in: how it is opened, and how its workers show that they are alive.

Every worker, on this machine or another, asks the storage what to try next, and any of them may be killed at any time.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Iterator

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipeline import stores
from pipeline.errors import UserError
from pipeline.study.slots import SILENT, try_again

HEARTBEAT = 20  # seconds; a trial whose worker has been silent for GRACE of them is taken up by another
GRACE = 3
BEATS = 3  # attempts of one heartbeat
BEAT_PAUSE = 2.0  # seconds between them
METRIC = "mac_percent"  # what a trial's value is called
OPENINGS = 5  # attempts to open a study
LOST = (StorageInternalError, SQLAlchemyError)  # what is raised when the database doesn't answer
ALLOWED = "sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE of a running server are allowed"

optuna.logging.set_verbosity(optuna.logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)


class Storage(optuna.storages.RDBStorage):
    """Optuna's storage, whose heartbeats outlive a storage that is locked for a while, or a server's new start."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Try BEATS times. Optuna's thread would end with the first that fails, and another worker take the trial."""
        for attempt in range(BEATS):
            try:
                return super().record_heartbeat(trial_id)
            except LOST:
                if attempt < BEATS - 1:
                    time.sleep(BEAT_PAUSE)
        return None  # the next one is due soon

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """Optuna's list of trials that it fails next. The reason is noted here: a failed trial can't be changed."""
        stale = super()._get_stale_trial_ids(study_id)
        for trial_id in stale:
            note_reason(self, trial_id, SILENT)
        return stale


def note_reason(storage: optuna.storages.BaseStorage, trial_id: int, reason: str) -> None:
    """Note why a trial is about to be failed, unless a reason was noted before."""
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, KeyError):
        if "reason" not in storage.get_trial(trial_id).user_attrs:
            storage.set_trial_user_attr(trial_id, "reason", reason)


def open_study(storage: str, name: str, identity: dict[str, str], heartbeat: int = HEARTBEAT) -> optuna.Study:
    """The study of this name, made where there is none.

    identity: what the study is begun with, by name. UserError when the storage can't be reached, or when the study was
    begun with another identity.
    """
    try:
        stores.probe(storage, absent=True)
    except stores.UnusableError as error:
        raise _unusable(storage, str(error)) from None
    for attempt in range(OPENINGS):  # two workers that make the tables at the same moment: one of them fails, once
        try:
            study = _open(storage, name, heartbeat)
            break
        except (
            SQLAlchemyError,
            ImportError,
            optuna.exceptions.OptunaError,
            ValueError,
            RuntimeError,
            KeyError,
        ) as error:
            transient = isinstance(error, DBAPIError | StorageInternalError)
            if attempt == OPENINGS - 1 or not transient:
                raise _unusable(storage, stores.reason(error, storage)) from None
            time.sleep(0.3 * (attempt + 1))
    for key, value in identity.items():
        begun = study.user_attrs.get(key)
        if begun is None:
            study.set_user_attr(key, value)
        elif begun != value:
            raise UserError(
                f"study {name!r} was begun with another {key} ({begun}) than there is here ({value}): the machines of "
                "a study share params.yaml and results/, and --study names another one"
            )
    return study


def _open(storage: str, name: str, heartbeat: int) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        database = Storage(
            storage,
            engine_kwargs={"connect_args": stores.connect_arguments(storage)},
            heartbeat_interval=heartbeat,
            grace_period=GRACE * heartbeat,
            heartbeat_stale_trial_callback=try_again,
        )
    study = optuna.create_study(storage=database, study_name=name, direction="minimize", load_if_exists=True)
    if study.metric_names is None:
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            study.set_metric_names([METRIC])
    return study


def _unusable(storage: str, reason: str) -> UserError:
    return UserError(f"the storage {stores.masked(storage, storage)} can't be used: {reason}; {ALLOWED}")


@contextlib.contextmanager
def answers() -> Iterator[None]:
    """One sentence where the storage is lost on the way, as at the start."""
    try:
        yield
    except LOST as error:
        reason = stores.reason(error)
        raise UserError(f"a store was lost ({reason}); when it is back, the same command goes on") from None
