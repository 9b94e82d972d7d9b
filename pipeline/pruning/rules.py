"""The paper's pruning rules, each a pure function of numbers; methods A to D are sets of them.

For layer l and output channel j, the relative magnitude is u(l,j) = mean|W_l[j]| / ref_l, with ref_l the mean magnitude
of layer l in the baseline. The magnitude of a group's channel is the largest u over the layers that produce it, so a
coupled channel goes only when every layer that makes it agrees. The threshold of group g is

    T_g = alpha * e_g * b_g        and the channels with a magnitude below T_g go.

    adaptive    (A)  alpha grows after an accepted iteration and shrinks after a rejected one
    depth       (B)  a group keeps at least max(n_min, ceil(rho * C_g)) channels, its strongest
    efficiency  (C)  e_g favours removing what costs most MACs for each weight
    balance     (D)  b_g presses a group that lags behind the mean pruned ratio

Where hardware likes multiples of `align` channels, a group keeps a multiple of its *step*, rounded up, so that what it
has in each of its layers is a multiple of `align`. A group of another size to begin with goes down to one or stays.

Source: Architecture-Aware Network Pruning for Vision Quality Applications (ICIP 2019) for the four ideas; the formulas
are this project's reading of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

EPSILON = 1e-9  # channels; 0.55 * 20 is a little more than 11 in binary, 0.29 * 100 a little less than 29


@dataclass(frozen=True)
class GroupState:
    """What the rules see of one coupled group."""

    name: str
    magnitudes: tuple[float, ...]  # one for each channel that is left: the largest u over its producing layers
    original: int  # C_g, channels in the baseline
    mac: float  # MACs that removing one channel saves
    weights: float  # weights that removing one channel saves
    units: tuple[int, ...] = (1,)  # channels of a layer to one of the group, each number that occurs; PixelShuffle: r²

    @property
    def pruned_ratio(self) -> float:
        return 1 - len(self.magnitudes) / self.original


@dataclass(frozen=True)
class State:
    """What the iteration carries on: the adaptive scale and each group's pressure."""

    alpha: float  # of the last accepted iteration
    step: float  # relative step to the next alpha
    balance: dict[str, float] = field(default_factory=dict)  # b_g; 1 where absent
    frozen: frozenset[str] = frozenset()  # groups that failed alone
    suspects: tuple[str, ...] = ()  # after a rejection: the only groups pressed next


@dataclass(frozen=True)
class Plan:
    """What one iteration removes, and why."""

    alpha: float
    thresholds: dict[str, float]
    removed: dict[str, tuple[int, ...]]  # group name to channel indices, for groups that give any


def keep_depth(original: int, n_min: int, rho: float) -> int:
    """Rule `depth`: the channels that a group of `original` channels must keep."""
    return min(original, max(n_min, math.ceil(rho * original - EPSILON)))


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


def select(magnitudes: Sequence[float], threshold: float, keep: int, at_most: int, step: int = 1) -> tuple[int, ...]:
    """The channels below the threshold, weakest first, at most `at_most`, leaving at least `keep`; sorted indices.

    What is left is rounded up to a multiple of `step`: nothing goes until it is enough to reach the next one below.
    """
    below = sorted((m, j) for j, m in enumerate(magnitudes) if m < threshold)
    room = max(0, min(len(below), at_most, len(magnitudes) - keep))
    left = round_up(len(magnitudes) - room, step)
    return tuple(sorted(j for _, j in below[: max(0, len(magnitudes) - left)]))


def plan(
    groups: Sequence[GroupState], state: State, alpha: float, rules: Sequence[str], numbers, total: tuple[float, float]
) -> Plan:
    """The thresholds at `alpha` and what falls below them. `numbers` is config.Settings; `total` the MACs and weights."""
    thresholds, removed = {}, {}
    for group in groups:
        e = b = 1.0
        if "efficiency" in rules:
            limits = numbers.efficiency_range
            e = mac_efficiency(group.mac, group.weights, *total, numbers.efficiency_power, limits)
        if "balance" in rules:
            b = state.balance.get(group.name, 1.0)
        thresholds[group.name] = alpha * e * b
        if pressed(group, state):
            step = channel_step(group.units, numbers.align)
            cap = group_cap(len(group.magnitudes), numbers, step)
            gone = select(group.magnitudes, thresholds[group.name], floor(group, rules, numbers), cap, step)
            if gone:
                removed[group.name] = gone
    return Plan(alpha, thresholds, removed)


def group_cap(channels: int, numbers, step: int) -> int:
    """The most that one iteration may remove of a group with so many channels: a share, and at least one step.

    Under `align` 8 a share of 15% of 16 channels would be two, and the group could never give: eight may go.
    """
    return max(step, int(numbers.max_share * channels + EPSILON))


def group_floor(original: int, rules: Sequence[str], numbers) -> int:
    """Channels that a group of `original` must keep: rule `depth`, or one, so that the network still runs."""
    return keep_depth(original, numbers.depth_channels, numbers.depth_share) if "depth" in rules else 1


def floor(group: GroupState, rules: Sequence[str], numbers) -> int:
    """What a group can come down to: its floor, rounded up to a step; a group with no more than that can't give."""
    return round_up(group_floor(group.original, rules, numbers), channel_step(group.units, numbers.align))


def pressed(group: GroupState, state: State) -> bool:
    """Whether a group may give channels now: not frozen and, while a rejection is looked into, a suspect."""
    return group.name not in state.frozen and (not state.suspects or group.name in state.suspects)


def next_plan(
    groups: Sequence[GroupState], state: State, rules: Sequence[str], numbers, total: tuple[float, float]
) -> Plan | None:
    """Rule `adaptive`: raise alpha by the state's step until a channel falls below its threshold.

    None when no group can give any more: each is at its floor or frozen, or its magnitudes aren't numbers.
    """
    able = [g for g in groups if pressed(g, state) and len(g.magnitudes) > floor(g, rules, numbers)]
    if not able:
        return None
    alpha = state.alpha
    while math.isfinite(alpha):
        found = plan(groups, state, alpha, rules, numbers, total)
        if found.removed:
            return found
        alpha *= 1 + max(state.step, 1e-3)
    return None


def after_accepted(state: State, done: Plan, groups: Sequence[GroupState], rules: Sequence[str], numbers) -> State:
    """Alpha grows from where it was accepted; under `balance`, the groups as they are now get their new b_g."""
    factors = state.balance
    if "balance" in rules and groups:
        mean = sum(g.pruned_ratio for g in groups) / len(groups)
        factors = {
            g.name: balance(
                factors.get(g.name, 1.0), g.pruned_ratio, mean, numbers.balance_strength, numbers.balance_range
            )
            for g in groups
        }
    step = numbers.threshold_growth
    return replace(state, alpha=done.alpha * (1 + step), step=step, balance=factors, suspects=())


def after_rejected(state: State, done: Plan, groups: Sequence[GroupState]) -> State:
    """Alpha shrinks and half of the groups that gave are pressed alone; a group that failed alone is frozen.

    The half that saves most MACs is tried first: it is the more useful one to clear of suspicion.
    """
    saved = {g.name: g.mac * len(done.removed.get(g.name, ())) for g in groups}
    gave = sorted(done.removed, key=lambda name: (-saved.get(name, 0.0), name))
    step = state.step / 2
    alpha = min(state.alpha, done.alpha) / (1 + step)
    if len(gave) == 1:
        return replace(state, alpha=alpha, step=step, frozen=state.frozen | {gave[0]}, suspects=())
    return replace(state, alpha=alpha, step=step, suspects=tuple(gave[: len(gave) // 2]))
