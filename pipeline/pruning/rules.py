"""The paper's pruning rules, each a pure function of numbers; methods A to D are sets of them.

Read from top to bottom: what the rules see (GroupState, State), each rule's formula, the plan of an iteration that they
make together (`plan`, `next_plan`), and what an accepted or a rejected iteration changes for the next one.

For layer l and output channel j, the relative magnitude is u(l,j) = mean|W_l[j]| / ref_l, with ref_l the mean magnitude
of layer l in the baseline. The paper's importance of a group's channel (`criterion: magnitude`) is the largest u over
the layers that produce it, so a coupled channel goes only when every layer that makes it agrees. Under another
criterion it is the channel's rank, from 0 to 2 with a mean of 1 as well (importance.py). The threshold of group g is

    T_g = alpha * e_g * b_g        and the channels whose importance is below T_g go.

    adaptive    (A)  alpha grows after an accepted iteration and shrinks after a rejected one
    depth       (B)  a group keeps at least max(n_min, ceil(rho * C_g)) channels, its strongest
    efficiency  (C)  e_g favours removing what costs most MACs for each weight
    balance     (D)  b_g raises the threshold of a group that lags behind the mean pruned ratio

Where hardware likes multiples of `align` channels, a group keeps a multiple of its *step*, rounded up, so that what it
has in each of its layers is a multiple of `align`. A group of another size to begin with goes down to one or stays.

Source: Architecture-Aware Network Pruning for Vision Quality Applications (ICIP 2019) for the four ideas; the formulas
are this project's reading of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pipeline import config

EPSILON = 1e-9  # channels; 0.55 * 20 is a little more than 11 in binary, 0.29 * 100 a little less than 29


@dataclass(frozen=True)
class GroupState:
    """What the rules see of one coupled group."""

    name: str
    importances: tuple[float, ...]  # one for each channel that is left
    baseline: int  # C_g, channels in the baseline
    mac: float  # MACs that removing one channel saves
    weights: float  # weights that removing one channel saves
    units: tuple[int, ...] = (1,)  # channels of a layer to one of the group, each number that occurs; PixelShuffle: r²

    @property
    def pruned_ratio(self) -> float:
        return 1 - len(self.importances) / self.baseline


@dataclass(frozen=True)
class State:
    """What one iteration hands to the next: the adaptive scale, each group's factor, and who may be pruned."""

    alpha: float  # the scale at which the next iteration begins
    step: float  # relative step to the next alpha
    balance: dict[str, float] = field(default_factory=dict)  # b_g; 1 where absent
    frozen: frozenset[str] = frozenset()  # groups that failed alone
    suspects: tuple[str, ...] = ()  # after a rejection: the only groups that are eligible next


@dataclass(frozen=True)
class Plan:
    """What one iteration removes, and why."""

    alpha: float
    thresholds: dict[str, float]
    removed: dict[str, tuple[int, ...]]  # group name to channel indices, for groups that lose any


def keep_depth(baseline: int, n_min: int, rho: float) -> int:
    """Rule `depth`: the channels that a group of `baseline` channels must keep."""
    return min(baseline, max(n_min, math.ceil(rho * baseline - EPSILON)))


def mac_efficiency(
    mac: float, weights: float, total_mac: float, total_weights: float, power: float, limits: tuple[float, float]
) -> float:
    """Rule `efficiency`: e_g = ((MAC_g / weights_g) / (MAC / weights))^power, within `limits`."""
    low, high = limits
    if not weights or not total_mac:
        return 1.0
    return min(high, max(low, ((mac / weights) / (total_mac / total_weights)) ** power))


def balance(b: float, pruned: float, mean_pruned: float, strength: float, limits: tuple[float, float]) -> float:
    """Rule `balance`: b_g * exp(strength * (mean pruned ratio - pruned ratio of g)), within `limits`."""
    low, high = limits
    return min(high, max(low, b * math.exp(strength * (mean_pruned - pruned))))


def channel_step(units: Sequence[int], align: int) -> int:
    """The smallest number of a group's channels that is a multiple of `align` in every layer: unit × number channels.

    With align 8, two for layers that all have 4 channels to one of the group, eight where one of them has 1 or 3.
    """
    return math.lcm(*(align // math.gcd(align, unit) for unit in units))


def round_up(channels: int, step: int) -> int:
    """The next multiple of `step`; never zero, as no group comes down to no channel."""
    return -(-channels // step) * step


def select(importances: Sequence[float], threshold: float, keep: int, at_most: int, step: int = 1) -> tuple[int, ...]:
    """The channels below the threshold, weakest first, at most `at_most`, leaving at least `keep`; sorted indices.

    What is left is rounded up to a multiple of `step`: nothing goes until it is enough to reach the next one below.
    """
    below = sorted((m, j) for j, m in enumerate(importances) if m < threshold)
    room = max(0, min(len(below), at_most, len(importances) - keep))
    left = round_up(len(importances) - room, step)
    return tuple(sorted(j for _, j in below[: max(0, len(importances) - left)]))


def plan(
    groups: Sequence[GroupState],
    state: State,
    alpha: float,
    rules: Sequence[str],
    settings: config.Settings,
    total: tuple[float, float],
) -> Plan:
    """The thresholds at `alpha` and what falls below them. total: MACs and weights of the baseline."""
    thresholds, removed = {}, {}
    for group in groups:
        e = b = 1.0
        if "efficiency" in rules:
            limits = settings.efficiency_range
            e = mac_efficiency(group.mac, group.weights, *total, settings.efficiency_power, limits)
        if "balance" in rules:
            b = state.balance.get(group.name, 1.0)
        thresholds[group.name] = alpha * e * b
        if eligible(group, state):
            step = channel_step(group.units, settings.align)
            cap = group_cap(len(group.importances), settings, step)
            gone = select(group.importances, thresholds[group.name], floor(group, rules, settings), cap, step)
            if gone:
                removed[group.name] = gone
    return Plan(alpha, thresholds, removed)


def group_cap(channels: int, settings: config.Settings, step: int) -> int:
    """The most that one iteration may remove of a group with so many channels: a share, and at least one step.

    Under `align` 8 a share of 15% of 16 channels would be two, less than a step, and the group would stay for ever:
    eight may go.
    """
    return max(step, int(settings.max_share * channels + EPSILON))


def group_floor(baseline: int, rules: Sequence[str], settings: config.Settings) -> int:
    """Channels that a group of `baseline` must keep: rule `depth`, or one, so that the network still runs."""
    return keep_depth(baseline, settings.depth_channels, settings.depth_share) if "depth" in rules else 1


def floor(group: GroupState, rules: Sequence[str], settings: config.Settings) -> int:
    """What a group can come down to: its floor, rounded up to a step; one with no more can't be pruned."""
    return round_up(group_floor(group.baseline, rules, settings), channel_step(group.units, settings.align))


def eligible(group: GroupState, state: State) -> bool:
    """Whether a group may be pruned now: it isn't frozen and, while a rejection is looked into, it is a suspect."""
    return group.name not in state.frozen and (not state.suspects or group.name in state.suspects)


def next_plan(
    groups: Sequence[GroupState],
    state: State,
    rules: Sequence[str],
    settings: config.Settings,
    total: tuple[float, float],
) -> Plan | None:
    """Rule `adaptive`: raise alpha by the state's step until a channel falls below its threshold.

    None when no group can be pruned: each is at its floor or frozen, or its importances aren't numbers.
    """
    prunable = [g for g in groups if eligible(g, state) and len(g.importances) > floor(g, rules, settings)]
    if not prunable:
        return None
    alpha = state.alpha
    while math.isfinite(alpha):
        candidate = plan(groups, state, alpha, rules, settings, total)
        if candidate.removed:
            return candidate
        alpha *= 1 + max(state.step, 1e-3)
    return None


def after_accepted(
    state: State, done: Plan, groups: Sequence[GroupState], rules: Sequence[str], settings: config.Settings
) -> State:
    """Alpha grows from where it was accepted; under `balance`, the groups as they are now get their new b_g."""
    factors = state.balance
    if "balance" in rules and groups:
        mean = sum(g.pruned_ratio for g in groups) / len(groups)
        factors = {
            g.name: balance(
                factors.get(g.name, 1.0), g.pruned_ratio, mean, settings.balance_strength, settings.balance_range
            )
            for g in groups
        }
    step = settings.threshold_growth
    return replace(state, alpha=done.alpha * (1 + step), step=step, balance=factors, suspects=())


def after_rejected(state: State, done: Plan, groups: Sequence[GroupState]) -> State:
    """Alpha shrinks, and of the groups just pruned only half are eligible next; one that was pruned alone is frozen.

    The half that saves most MACs is tried first: it is the more useful one to find harmless.
    """
    saved = {g.name: g.mac * len(done.removed.get(g.name, ())) for g in groups}
    pruned = sorted(done.removed, key=lambda name: (-saved.get(name, 0.0), name))
    step = state.step / 2
    alpha = min(state.alpha, done.alpha) / (1 + step)
    if len(pruned) == 1:
        return replace(state, alpha=alpha, step=step, frozen=state.frozen | {pruned[0]}, suspects=())
    return replace(state, alpha=alpha, step=step, suspects=tuple(pruned[: len(pruned) // 2]))
