"""Optuna studies: which numbers of `prune` keep fewest MACs at no drop. The only module that knows Optuna.

A study lives in its storage alone: every worker, on this machine or another, asks it what to try next, and any of them
may be killed at any moment. A trial that was killed, or failed, is taken up again once, in a new trial of the same
*slot*; a study of n trials has n slots, each counted once.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pipeline import config, stores
from pipeline.errors import UserError
from pipeline.trial import CannotWinError, Outcome, Report, Values

HEARTBEAT = 20  # seconds; a trial whose worker has been silent for GRACE of them is taken up by another
GRACE = 3
RETRIES = 1
STARTUP = 6  # trials at random, the default parameters' included, before the sampler has something to learn from
BEATS = 3  # attempts of one heartbeat
BEAT_PAUSE = 2.0  # seconds between them
SILENT = "its worker was killed, or silent for too long"
DIGITS = 4  # significant ones of a proposed number: what a person reads, and what `dvc exp run -S` is given

Space = dict[str, BaseDistribution]

optuna.logging.set_verbosity(optuna.logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)


class Storage(optuna.storages.RDBStorage):
    """Optuna's storage, whose heartbeats outlive a storage that is locked for a while, or a server's new start."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Optuna's thread ends with the first beat that fails, and the living worker's trial is taken up by another."""
        for attempt in range(BEATS):
            try:
                return super().record_heartbeat(trial_id)
            except (StorageInternalError, SQLAlchemyError):
                if attempt < BEATS - 1:
                    time.sleep(BEAT_PAUSE)
        return None  # the next one is due soon

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """Those that are about to be failed; once they are, nothing can be noted of them."""
        found = super()._get_stale_trial_ids(study_id)
        for trial_id in found:
            _why(self, trial_id, SILENT)
        return found


def _why(storage: optuna.storages.BaseStorage, trial_id: int, reason: str) -> None:
    """Note why a trial is about to be failed, where nobody has said so before."""
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, KeyError):
        if "reason" not in storage.get_trial(trial_id).user_attrs:
            storage.set_trial_user_attr(trial_id, "reason", reason)


def distributions(space: dict[str, config.Range]) -> Space:
    """Optuna's form of the search space in params.yaml."""
    found: Space = {}
    for key, wanted in space.items():
        if config.whole_number(key):
            found[key] = IntDistribution(int(wanted.low), int(wanted.high), log=wanted.log)
        else:
            found[key] = FloatDistribution(wanted.low, wanted.high, log=wanted.log)
    return found


def open_study(storage: str, name: str, identity: dict[str, str], heartbeat: int = HEARTBEAT) -> optuna.Study:
    """The study of this name, made where there is none. UserError when its storage can't be reached, or when what it
    was begun with (`identity`) isn't what is given now."""
    allowed = "sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE of a running server are allowed"
    try:
        stores.probe(storage, absent=True)
    except stores.UnusableError as error:
        raise UserError(f"the storage {stores.masked(storage, storage)} can't be used: {error}; {allowed}") from None
    for attempt in range(5):  # two workers that make the tables at the same moment: one of them fails, once
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                opened = Storage(
                    storage,
                    engine_kwargs={"connect_args": stores.connect_arguments(storage)},
                    heartbeat_interval=heartbeat,
                    grace_period=GRACE * heartbeat,
                    heartbeat_stale_trial_callback=_again,
                )
            study = optuna.create_study(storage=opened, study_name=name, direction="minimize", load_if_exists=True)
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
            if attempt == 4 or not transient:
                raise UserError(
                    f"the storage {stores.masked(storage, storage)} can't be used: {stores.reason(error, storage)}; "
                    f"{allowed}"
                ) from None
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


# --- slots --------------------------------------------------------------------------------------------------------


def slot(trial: FrozenTrial) -> int:
    """The number of the first trial of these parameters; a retry has its own number and the slot of the first."""
    return trial.system_attrs.get("failed_trial", trial.number)


def slots(study: optuna.Study, total: int) -> dict[int, FrozenTrial]:
    """The newest trial of each slot that counts, in the order they began: never more than `total`."""
    newest: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get("surplus"):
            continue
        before = newest.get(slot(trial))
        # a retry that was made twice, by two workers at once, must not hide the one that has finished
        if before is None or not before.state.is_finished() or before.state == TrialState.FAIL:
            newest[slot(trial)] = trial
    return {key: newest[key] for key in sorted(newest)[:total]}


def over(trial: FrozenTrial) -> bool:
    """Whether a slot needs no more work: finished, or failed once too often."""
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        return True
    return trial.state == TrialState.FAIL and len(trial.system_attrs.get("retry_history", [])) >= RETRIES


def winner(study: optuna.Study) -> FrozenTrial | None:
    """The feasible trial that keeps fewest MACs."""
    found = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if feasible(t)]
    return min(found, key=lambda trial: (trial.value, trial.number), default=None)


def failures(study: optuna.Study) -> dict[int, str]:
    """Why each failed trial failed, by its number."""
    found = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return {trial.number: trial.user_attrs.get("reason", SILENT) for trial in found}


def nearest(study: optuna.Study) -> FrozenTrial | None:
    """Where none is feasible: the trial that misses by least."""
    found = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min(found, key=lambda trial: (max(trial.constraints.values()), trial.number), default=None)


def feasible(trial: FrozenTrial) -> bool:
    """A trial without constraints never finished being measured, whatever Optuna thinks of it."""
    return bool(trial.constraints) and all(value <= 0 for value in trial.constraints.values())


def _again(study: optuna.Study, trial: FrozenTrial, counts: bool = True) -> None:
    """Put a trial back into the queue. Its constraints stay behind: a retry would inherit them."""
    history = [*trial.system_attrs.get("retry_history", [])]
    if counts and len(history) >= RETRIES:
        return
    if any(other.system_attrs.get("retry_of") == trial.number for other in study.get_trials(deepcopy=False)):
        return  # another worker was faster
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            system_attrs={
                "failed_trial": slot(trial),
                "retry_history": [*history, trial.number] if counts else history,
                "retry_of": trial.number,
            },
        )
    )


# --- proposals ----------------------------------------------------------------------------------------------------


class Proposals(optuna.samplers.BaseSampler):
    """The next trial's parameters, from the study and the place of its slot alone: a resumed study goes on the same.

    The first slot gets the default parameters. Optuna's Gaussian-process sampler sees a study made anew from what is
    known, in which a trial that was given up for keeping too many MACs counts with those MACs: it ignores pruned
    trials, and would propose the same point again.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        defaults: Values,
        make: Callable[[int], optuna.samplers.BaseSampler] | None = None,
    ) -> None:
        self.space, self.seed, self.defaults, self.make = space, seed, defaults, make or gaussian_process

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Space:
        return self.space

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Space) -> Values:
        trials = study.get_trials(deepcopy=False)
        place = len({slot(past) for past in trials if slot(past) < slot(trial) and not past.user_attrs.get("surplus")})
        if place == 0:
            return dict(self.defaults)
        known = optuna.create_study(sampler=self.make(self.seed * 10_007 + place))
        for past in trials:
            if past.number != trial.number and past.params.keys() == self.space.keys():
                copied = _as_known(past)
                if copied is not None:
                    known.add_trial(copied)
        return {key: rounded(value, self.space[key]) for key, value in known.ask(self.space).params.items()}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> float:
        raise ValueError(f"{param_name} isn't in the search space")  # every number of it is proposed at once, above


def gaussian_process(seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, deterministic_objective=True, n_startup_trials=STARTUP)


def rounded(value: float, allowed: BaseDistribution) -> float:
    """A proposed number in few digits, still inside its range."""
    if isinstance(allowed, IntDistribution):
        return int(value)
    return min(allowed.high, max(allowed.low, float(f"{value:.{DIGITS}g}")))


def _as_known(trial: FrozenTrial) -> FrozenTrial | None:
    common = {"params": trial.params, "distributions": trial.distributions}
    if trial.state == TrialState.COMPLETE and trial.constraints:
        return create_trial(**common, value=trial.value, constraints=trial.constraints)
    if trial.state == TrialState.PRUNED and "mac_kept" in trial.user_attrs:
        names = trial.user_attrs["constraints"]  # it removes less than the best: that it holds is likely, and no matter
        return create_trial(**common, value=trial.user_attrs["mac_kept"], constraints=dict.fromkeys(names, 0.0))
    if trial.state in (TrialState.RUNNING, TrialState.WAITING):
        return create_trial(**common, state=TrialState.RUNNING)
    return None


# --- the worker ---------------------------------------------------------------------------------------------------


def work(
    study: optuna.Study,
    run: Callable[[int, Values, Report], Outcome],
    proposals: Proposals,
    total: int,
    constraints: Sequence[str],
    poll: float = 2.0,
    grace: float = GRACE * HEARTBEAT,
) -> None:
    """Run trials until the study has `total`; several workers may do so at once.

    run: does one trial, of this number and with these parameters. It calls the report after each iteration, which
    raises CannotWinError when the trial needn't go on. Whatever else it raises fails the trial, with the reason as a
    user attribute, except for a UserError, which ends the work.
    """
    study.sampler = proposals
    while True:
        _take_up_stale(study, grace)
        known = slots(study, total)
        for trial in known.values():  # its worker was killed after the trial failed and before it was put back
            if trial.state == TrialState.FAIL and not over(trial):
                _again(study, trial)
        if len(known) == total and all(over(trial) for trial in known.values()):
            return
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if waiting or len(known) < total:
            _one(study, run, total, constraints)
        else:  # other workers are at the last trials, and may die
            time.sleep(poll)


def _take_up_stale(study: optuna.Study, grace: float) -> None:
    """Put the trials of dead workers back into the queue: the heartbeat's, and those that never had a first beat."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "begun" not in trial.user_attrs and datetime.now() - trial.datetime_start > timedelta(seconds=grace):
            with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):  # it ended meanwhile
                _why(study._storage, trial._trial_id, "its worker was killed before it began")
                study.tell(trial.number, state=TrialState.FAIL)
                _again(study, _frozen(study, trial.number), counts=False)


def _one(study: optuna.Study, run, total: int, constraints: Sequence[str]) -> None:
    """Ask for one trial, run it, tell its end; what failed goes back into the queue."""
    begun: list[int] = []
    fatal: list[Exception] = []  # no fault of the trial's: a UserError, or the storage's

    def objective(trial: optuna.Trial) -> float:
        begun.append(trial.number)
        trial.set_user_attr("begun", True)
        if slot(_frozen(study, trial.number)) not in slots(study, total):
            trial.set_user_attr("surplus", True)  # workers that began the last trial at the same moment: one too many
            raise optuna.TrialPruned
        started = time.monotonic()
        try:
            values = _suggested(trial, study.sampler.space)
            outcome = _known(study, trial.number, values) or run(trial.number, values, _reporter(study, trial))
            if not math.isfinite(outcome.mac_kept):  # Optuna would fail the trial without a word
                raise ValueError(f"the share of MACs kept is {outcome.mac_kept}, which is no number")
            seconds = time.monotonic() - started
            # the dashboard shows no constraints: the drops are among the notes
            _note(
                trial, outcome.notes | {"mac_kept": outcome.mac_kept, "feasible": outcome.feasible, "seconds": seconds}
            )
            for key in constraints:  # last: a trial whose worker is killed from here on is the only one that has them
                trial.set_constraint(key, outcome.constraints[key])
        except CannotWinError as error:
            _note(trial, error.notes | {"reason": str(error), "constraints": list(constraints)})
            _note(trial, {"mac_kept": error.mac_kept})
            raise optuna.TrialPruned from None
        except BaseException as error:
            if isinstance(error, UserError | StorageInternalError | SQLAlchemyError):
                fatal.append(error)
            with contextlib.suppress(StorageInternalError, SQLAlchemyError):
                _note(trial, {"reason": _reason(error)})
            raise
        return outcome.mac_kept

    try:
        study.optimize(objective, n_trials=1, catch=(Exception,))
    except KeyboardInterrupt:
        if begun:
            _again(study, _frozen(study, begun[0]), counts=False)
        raise
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        # silent for too long (a suspended machine, say), it was taken up by another worker, whose result counts
        if not begun or not _frozen(study, begun[0]).state.is_finished():
            raise
        return
    ended = _frozen(study, begun[0])
    if fatal:
        _again(study, ended, counts=False)
        raise fatal[0]
    if ended.state == TrialState.FAIL:
        _again(study, ended)


def _reason(error: BaseException) -> str:
    """Why a trial failed: the kind and the text of what was raised, in one line."""
    words = " ".join(str(error).split())
    return stores.text(f"{type(error).__name__}: {words}" if words else type(error).__name__, 500)


def _suggested(trial: optuna.Trial, space: Space) -> Values:
    found: Values = {}
    for key, allowed in space.items():
        ask = trial.suggest_int if isinstance(allowed, IntDistribution) else trial.suggest_float
        found[key] = ask(key, allowed.low, allowed.high, log=allowed.log)
    return found


def _frozen(study: optuna.Study, number: int) -> FrozenTrial:
    return next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)


def _note(trial: optuna.Trial, values: dict[str, Any]) -> None:
    for key, value in values.items():
        trial.set_user_attr(key, value)


def _known(study: optuna.Study, number: int, values: Values) -> Outcome | None:
    """What an earlier trial with the same parameters found: they aren't run twice."""
    for past in study.get_trials(deepcopy=False):
        if past.number == number or past.params != values:
            continue
        notes = {key: value for key, value in past.user_attrs.items() if key not in ("seconds", "constraints", "begun")}
        if past.state == TrialState.COMPLETE and past.constraints:
            return Outcome(past.value, dict(past.constraints), notes | {"same_as": past.number})
        if past.state == TrialState.PRUNED and "mac_kept" in past.user_attrs:
            raise CannotWinError(past.user_attrs["mac_kept"], {"same_as": past.number})
    return None


def _reporter(study: optuna.Study, trial: optuna.Trial) -> Report:
    told: set[int] = set()

    def report(iteration: int, mac_kept: float, at_least: float) -> None:
        if _frozen(study, trial.number).state != TrialState.RUNNING:
            raise ValueError("another worker has taken this trial up")
        if iteration not in told:
            told.add(iteration)
            trial.report(mac_kept, iteration)
        best = winner(study)
        if best is not None and at_least >= best.value:
            raise CannotWinError(mac_kept)

    return report


def importances(study: optuna.Study) -> dict[str, float]:
    """Of each parameter for the MACs kept; nothing where the trials are too few or all alike."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    except (RuntimeError, ValueError):
        return {}


def table(study: optuna.Study, total: int) -> list[dict[str, Any]]:
    """One row for each slot, in the order they began: what the pictures are drawn from."""
    rows = []
    for trial in slots(study, total).values():
        notes = {key: value for key, value in trial.user_attrs.items() if key not in ("constraints", "begun")}
        state = trial.state.name.lower()
        rows.append({"trial": trial.number, "state": state, "params": dict(trial.params), **notes})
    return rows
