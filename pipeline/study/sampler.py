"""What a trial tries: Optuna's sampler, asked such that a resumed study proposes the same as one that never stopped."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipeline import config
from pipeline.study.slots import constraints_of, slot
from pipeline.study.trial import Values

STARTUP = 6  # trials at random, the default parameters' included, before the sampler has something to learn from
DIGITS = 4  # significant ones of a proposed number: what a person reads, and what `dvc exp run -S` is given

Limits = FloatDistribution | IntDistribution
Space = dict[str, Limits]


def distributions(space: dict[str, config.Range]) -> Space:
    """Optuna's form of the search space in params.yaml."""
    optuna_space: Space = {}
    for key, limits in space.items():
        if config.whole_number(key):
            optuna_space[key] = IntDistribution(int(limits.low), int(limits.high), log=limits.log)
        else:
            optuna_space[key] = FloatDistribution(limits.low, limits.high, log=limits.log)
    return optuna_space


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

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {**self.space}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> Values:
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
        return {key: rounded(value, self.space[key]) for key, value in known.ask(search_space).params.items()}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> float:
        raise ValueError(f"{param_name} isn't in the search space")  # every number of it is proposed at once, above


def gaussian_process(seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's Gaussian-process sampler, random for the first STARTUP trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, deterministic_objective=True, n_startup_trials=STARTUP)


def rounded(value: float, limits: Limits) -> float:
    """A proposed number in few digits, still inside its range."""
    if isinstance(limits, IntDistribution):
        return int(value)
    return min(limits.high, max(limits.low, float(f"{value:.{DIGITS}g}")))


def _as_known(trial: FrozenTrial) -> FrozenTrial | None:
    """A trial as the sampler is to see it; None for one that tells it nothing."""
    copied = partial(create_trial, params=trial.params, distributions=trial.distributions)
    if trial.state == TrialState.COMPLETE and trial.constraints:
        return copied(value=trial.value, constraints=constraints_of(trial))
    if trial.state == TrialState.PRUNED and "mac_percent" in trial.user_attrs:
        # it removes less than the best: it probably holds the gate, and nothing depends on whether it does
        names = trial.user_attrs["constraints"]
        return copied(value=trial.user_attrs["mac_percent"], constraints=dict.fromkeys(names, 0.0))
    if trial.state in (TrialState.RUNNING, TrialState.WAITING):
        return copied(state=TrialState.RUNNING)
    return None
