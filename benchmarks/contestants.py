"""What benchmarks/race.py lets run but for the peers: criteria, group lassos, and networks trained from scratch.

Each takes a `Task` and gives an `Entry`: a smaller network, and the training that it still gets. Where a contestant has
trained already, that comes off its steps, so that all have the same number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

from pipeline import config, cost, networks
from pipeline.errors import UserError
from pipeline.networks import duplicate
from pipeline.networks.sid import SID
from pipeline.progress import Silent
from pipeline.pruning import coupling, criteria, importance, reconstruction, removal, rules
from pipeline.training.recipes import train_iteration
from pipeline.training.setup import Setup

RULES = ("adaptive", "depth")
PRESSURE = 1.0  # the lasso at its beginning, relative to the loss
WIDTHS = {"edsr": ("channels", 64), "sid": ("base", 32)}  # factory -> the argument that is its width, and its default
Made = TypeVar("Made")


@dataclass(frozen=True)
class Task:
    """The network to make smaller, how small, and the training that there is for all of it."""

    baseline: nn.Module
    setup: Setup  # its seed is the contestant's
    recipe: config.Finetune
    most: float  # MACs that may be left
    scratch: Path  # a folder for what a search has found so far

    def left(self, network: nn.Module) -> float:
        """MACs at the size at which costs are counted."""
        return self.setup.cost(network).mac


@dataclass(frozen=True)
class Entry:
    """What goes into the common training."""

    network: nn.Module
    recipe: config.Finetune  # what is left of the task's; from scratch it is longer


@dataclass(frozen=True)
class Field:
    """The baseline, and what the criteria choose by."""

    baseline: nn.Module
    groups: removal.Coupling
    spent: cost.Cost
    reference: dict[str, float]
    known: reconstruction.Known
    settings: config.Settings

    @classmethod
    def of(cls, baseline: nn.Module, setup: Setup, settings: config.Settings) -> Field:
        groups = coupling.find_groups(baseline, setup.example(baseline))
        reference = importance.reference_magnitudes(baseline, groups)
        known = reconstruction.moments(baseline, groups, setup.sample_pairs())
        return cls(baseline, groups, setup.cost(baseline), reference, known, settings)

    def smaller(self, variant: str, task: Task) -> nn.Module:
        """Without what a criterion chooses; ", cut alone": readers don't make up for it.

        UserError where the criterion has nothing to go by.
        """
        word, _, alone = variant.partition(", ")
        criterion = cast(config.Criterion, word)
        criteria.check(criterion, self.baseline, self.groups, task.setup.example(self.baseline), task.setup.name)
        removed = self.chosen(criterion, task)
        network = self.baseline
        if not alone:
            network = reconstruction.compensated(network, self.groups, removed, self.known)
        return removal.remove(network, self.groups, removed).eval()

    def states(self, criterion: config.Criterion, setup: Setup) -> list[rules.GroupState]:
        channels = {group.name: group.channels for group in self.groups.groups}
        limits = {name: count - rules.group_floor(count, RULES, self.settings) for name, count in channels.items()}
        scores = criteria.scores(criterion, self.baseline, self.groups, setup, limits, self.known)
        return importance.group_states(
            self.baseline, self.spent, self.groups, self.reference, channels, criterion, scores
        )

    def chosen(self, criterion: config.Criterion, task: Task) -> removal.Removed:
        """The channels below the lowest threshold at which no more than the allowed MACs are left."""
        settings = self.settings.model_copy(update={"criterion": criterion, "max_share": 1.0})
        states = self.states(criterion, task.setup)
        start, total = rules.State(alpha=0.0, step=0.0), (self.spent.mac, self.spent.weights)

        def left(removed: removal.Removed) -> float:
            return task.left(removal.remove(self.baseline, self.groups, removed)) if removed else self.spent.mac

        def below(alpha: float) -> removal.Removed:
            return rules.plan(states, start, alpha, RULES, settings, total).removed

        low, high = 0.0, 1.0
        while left(below(high)) > task.most and high < 1e3:
            high *= 2
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if left(below(middle)) > task.most else (low, middle)
        removed = {name: list(gone) for name, gone in below(high).items()}
        importances = {state.name: state.importances for state in states}
        order = sorted(((importances[name][j], name, j) for name, gone in removed.items() for j in gone), reverse=True)
        for _, name, channel in order:
            fewer = removed | {name: [j for j in removed[name] if j != channel]}
            fewer = {key: gone for key, gone in fewer.items() if gone}
            if left(fewer) <= task.most:
                removed = fewer
        return removed


def by_lasso(field: Field, task: Task, weighted: bool) -> Entry:
    """Half of the steps with a group lasso, then the channels that it has shrunk most go; nothing makes up for them.

    weighted: by MACs, as in MorphNet (Gordon et al., CVPR 2018, without its widening); else each group alike, as in SSL
    (Wen et al., NIPS 2016). docs/method.md says which settings of the pipeline these are. How strong the lasso is the
    papers leave open: here PRESSURE, the best of 0.03, 0.1, 0.3 and 1 on EDSR 4×32 by what the cut costs.
    """
    active = ("efficiency",) if weighted else ()
    shares = importance.lasso_shares(field.states("magnitude", task.setup), active)
    whole = importance.Regulariser(field.groups, field.reference, shares, 1.0, 0.0)
    with torch.no_grad():
        inputs, targets = next(task.setup.sample_pairs())
        loss = (task.baseline(inputs) - targets).abs().mean().item()
        strength = PRESSURE * loss / whole(task.baseline).item()
    first = task.recipe.steps // 2
    network = duplicate(task.baseline)
    retrain = task.setup.retrain.model_copy(
        update={"steps": first, "lr": task.recipe.lr, "teacher": task.recipe.teacher}
    )
    setup = replace(task.setup, retrain=retrain, cache=task.scratch)  # the same for any number of MACs
    own = task.scratch / f"lasso-{weighted}-{setup.seed}-{first}-{retrain.teacher:g}"
    own.mkdir(parents=True, exist_ok=True)
    train_iteration(network, setup, 1, own, Silent(), task.baseline, replace(whole, sparsity=strength))
    shrunk = replace(field, baseline=network)
    return Entry(shrunk.smaller("magnitude, cut alone", task), after(task.recipe, first))


def after(recipe: config.Finetune, steps: int) -> config.Finetune:
    """What is left of a training when so many of its steps are spent."""
    return recipe.model_copy(update={"steps": recipe.steps - steps})


def from_scratch(network: nn.Module, task: Task) -> Entry:
    """The architecture with fresh weights, and the baseline's training, longer by the steps that the others have."""
    train = task.setup.recipe
    if train.checkpoint is not None:
        raise UserError("the baseline's weights come from a file: how many steps they took isn't known")
    network = duplicate(network)
    torch.manual_seed(task.setup.seed)
    for module in network.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    if isinstance(network, SID):
        network._initialise()
    rate = task.setup.rate  # the fine-tune's rates are multiplied by it
    recipe = {"steps": train.steps + task.recipe.steps, "lr": train.lr / rate, "lr_final": train.lr_final / rate}
    return Entry(network, task.recipe.model_copy(update=recipe))


def narrower(task: Task) -> nn.Module:
    """The widest network of the baseline's kind, all of its layers narrower alike, with no more MACs than allowed."""
    factory, args = task.setup.network.factory, task.setup.network.args
    if factory not in WIDTHS:
        raise UserError(f"which argument of {factory} is its width isn't known")
    key, default = WIDTHS[factory]
    for width in range(args.get(key, default), 0, -1):
        network = networks.build(factory, {**args, key: width})
        if task.left(network) <= task.most:
            return network
    raise UserError(f"{factory} has more MACs than allowed with {key} 1")


def nearest(
    make: Callable[[float], Made], left: Callable[[Made], float], whole: float, most: float, high: float, tries: int
) -> Made:
    """What `make` gives with the most MACs that are allowed, of `tries` numbers from 0 (whole) to `high`, at most.

    make: its number says how much goes. left: MACs of what it gives. The next number is where a straight line between
    the two nearest so far meets `most`, but well within them. It ends early when 99% of the allowed are reached.
    UserError when nothing is small enough.
    """
    low, above, below = 0.0, whole, 0.0
    best: Made | None = None
    reached = -math.inf
    for _ in range(tries):
        share = (above - most) / (above - below) if above > below else 0.5
        number = low + (high - low) * min(0.9, max(0.1, share))
        made = make(number)
        mac = left(made)
        if mac > most:
            low, above = number, mac
            continue
        high, below = number, mac
        if mac > reached:
            best, reached = made, mac
        if mac >= 0.99 * most:
            break
    if best is None:
        raise UserError(f"it can't be made so small: {100 * above / whole:.1f}% of the MACs are left")
    return best
