"""Slots: what counts as one trial of a study, which trials hold the gate, and which one wins.

A trial that failed, or whose worker was killed, is tried once more by a new trial of the same slot. A study of n trials
has n slots, and each counts once.
"""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

RETRIES = 1
SILENT = "its worker was killed, or silent for too long"


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


def kept(trial: FrozenTrial) -> float:
    """The MACs that a complete trial keeps, in percent."""
    assert trial.value is not None
    return trial.value


def constraints_of(trial: FrozenTrial) -> dict[str, float]:
    """A trial's constraints by name, without the list of them that the dashboard reads."""
    return {name: value for name, value in trial.constraints.items() if not name.isdecimal()}


def show_constraints(study: optuna.Study, trial: optuna.Trial) -> None:
    """Copy a trial's constraints to where optuna-dashboard (0.21) looks: it doesn't know those that have names."""
    values = [*constraints_of(by_number(study, trial.number)).values()]
    study._storage.set_trial_system_attr(trial._trial_id, "constraints", values)


def feasible(trial: FrozenTrial) -> bool:
    """Whether a trial holds the gate. One without constraints never finished being measured."""
    return bool(trial.constraints) and all(value <= 0 for value in trial.constraints.values())


def winner(study: optuna.Study) -> FrozenTrial | None:
    """The feasible trial that keeps fewest MACs."""
    candidates = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if feasible(t)]
    return min(candidates, key=lambda trial: (kept(trial), trial.number), default=None)


def nearest(study: optuna.Study) -> FrozenTrial | None:
    """Where none is feasible: the trial that misses by least."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min(complete, key=lambda trial: (max(trial.constraints.values()), trial.number), default=None)


def failures(study: optuna.Study) -> dict[int, str]:
    """Why each failed trial failed, by its number."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return {trial.number: trial.user_attrs.get("reason", SILENT) for trial in failed}


def by_number(study: optuna.Study, number: int) -> FrozenTrial:
    """The trial of this number, as the storage has it now."""
    return next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)


def try_again(study: optuna.Study, trial: FrozenTrial, counts: bool = True) -> None:
    """Put a failed trial back into the queue, unless it was tried RETRIES times; `counts`: whether this is such a try.

    Its constraints aren't copied: the new trial has none until it was measured.
    """
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
