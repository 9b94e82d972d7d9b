"""A worker's loop: it asks the study for a trial, runs it and tells the result, until the study has its total."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from pipeline import stores
from pipeline.errors import UserError
from pipeline.study.sampler import Proposals, Space
from pipeline.study.slots import by_number, constraints_of, kept, over, show_constraints, slot, slots, try_again, winner
from pipeline.study.storage import GRACE, HEARTBEAT, LOST, note_reason
from pipeline.study.trial import CannotWinError, Outcome, Report, Values

INTERNAL = ("constraints", "begun")  # user attributes that are no result


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
                try_again(study, trial)
        if len(known) == total and all(over(trial) for trial in known.values()):
            return
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if waiting or len(known) < total:
            run_one(study, run, total, constraints)
        else:  # other workers are at the last trials, and may die
            time.sleep(poll)


def _take_up_stale(study: optuna.Study, grace: float) -> None:
    """Put the trials of dead workers back into the queue: the heartbeat's, and those that never had a first beat."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        asked = trial.datetime_start
        if asked and "begun" not in trial.user_attrs and datetime.now() - asked > timedelta(seconds=grace):
            with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):  # it ended meanwhile
                note_reason(study._storage, trial._trial_id, "its worker was killed before it began")
                study.tell(trial.number, state=TrialState.FAIL)
                try_again(study, by_number(study, trial.number), counts=False)


def run_one(
    study: optuna.Study, run: Callable[[int, Values, Report], Outcome], total: int, constraints: Sequence[str]
) -> None:
    """Ask for one trial, run it, tell its end; what failed goes back into the queue."""
    begun: list[int] = []
    fatal: list[Exception] = []  # not caused by the trial: a UserError, or the storage's

    def objective(trial: optuna.Trial) -> float:
        begun.append(trial.number)
        # Optuna's thread may not have come to the first beat when the worker is killed, and to Optuna a trial without
        # one is never stale: `begun` says that there is one
        study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
        trial.set_user_attr("begun", True)
        if slot(by_number(study, trial.number)) not in slots(study, total):
            trial.set_user_attr("surplus", True)  # workers that began the last trial at the same moment: one too many
            raise optuna.TrialPruned
        assert isinstance(study.sampler, Proposals)  # work put it there
        started = time.monotonic()
        try:
            values = _suggested(trial, study.sampler.space)
            outcome = _known(study, trial.number, values) or run(trial.number, values, _reporter(study, trial))
            if not math.isfinite(outcome.mac_percent):  # Optuna would fail the trial and give no reason
                raise ValueError(f"the percentage of MACs kept is {outcome.mac_percent}, which is no number")
            figures = {"mac_percent": outcome.mac_percent, "feasible": outcome.feasible}
            # the changes are among the notes, since the dashboard shows no constraints
            _note(trial, outcome.notes | figures | {"seconds": time.monotonic() - started})
            for key in constraints:  # last: a trial whose worker is killed from here on is the only one that has them
                trial.set_constraint(key, outcome.constraints[key])
            show_constraints(study, trial)
        except CannotWinError as error:
            _note(trial, error.notes | {"reason": str(error), "constraints": list(constraints)})
            _note(trial, {"mac_percent": error.mac_percent})
            raise optuna.TrialPruned from None
        except BaseException as error:
            if isinstance(error, (UserError, *LOST)):
                fatal.append(error)
            with contextlib.suppress(*LOST):
                _note(trial, {"reason": _reason(error)})
            raise
        return outcome.mac_percent

    try:
        study.optimize(objective, n_trials=1, catch=(Exception,))
    except KeyboardInterrupt:
        if begun:
            try_again(study, by_number(study, begun[0]), counts=False)
        raise
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        # silent for too long (a suspended machine, say), it was taken up by another worker, whose result counts
        if not begun or not by_number(study, begun[0]).state.is_finished():
            raise
        return
    ended = by_number(study, begun[0])
    if fatal:
        try_again(study, ended, counts=False)
        raise fatal[0]
    if ended.state == TrialState.FAIL:
        try_again(study, ended)


def _reason(error: BaseException) -> str:
    """Why a trial failed: the kind and the text of what was raised, in one line."""
    words = " ".join(str(error).split())
    return stores.text(f"{type(error).__name__}: {words}" if words else type(error).__name__, 500)


def _suggested(trial: optuna.Trial, space: Space) -> Values:
    """The trial's parameters, as the sampler proposes them."""
    values: Values = {}
    for key, limits in space.items():
        if isinstance(limits, IntDistribution):
            values[key] = trial.suggest_int(key, limits.low, limits.high, log=limits.log)
        else:
            values[key] = trial.suggest_float(key, limits.low, limits.high, log=limits.log)
    return values


def _note(trial: optuna.Trial, values: dict[str, Any]) -> None:
    for key, value in values.items():
        trial.set_user_attr(key, value)


def _known(study: optuna.Study, number: int, values: Values) -> Outcome | None:
    """The outcome of an earlier trial with the same parameters: they aren't run twice."""
    for past in study.get_trials(deepcopy=False):
        if past.number == number or past.params != values:
            continue
        notes = {key: value for key, value in past.user_attrs.items() if key not in ("seconds", *INTERNAL)}
        if past.state == TrialState.COMPLETE and past.constraints:
            return Outcome(kept(past), constraints_of(past), notes | {"same_as": past.number})
        if past.state == TrialState.PRUNED and "mac_percent" in past.user_attrs:
            raise CannotWinError(past.user_attrs["mac_percent"], {"same_as": past.number})
    return None


def _reporter(study: optuna.Study, trial: optuna.Trial) -> Report:
    """What a trial calls after each iteration: it notes the MACs kept, and ends a trial that can't win."""
    reported: set[int] = set()

    def report(iteration: int, mac_percent: float, at_least: float) -> None:
        if by_number(study, trial.number).state != TrialState.RUNNING:
            raise ValueError("another worker has taken this trial up")
        if iteration not in reported:
            reported.add(iteration)
            trial.report(mac_percent, iteration)
        best = winner(study)
        if best is not None and at_least >= kept(best):
            raise CannotWinError(mac_percent)

    return report
