"""The pruning rules against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from pipeline import config
from pipeline.pruning import rules
from pipeline.pruning.rules import GroupState, Plan, State

TOTAL = (300.0, 100.0)  # MACs and weights of the made-up network: 3 MACs for each weight


def group(name: str, importances: tuple[float, ...], baseline: int = 0, mac: float = 3.0, weights: float = 1.0):
    return GroupState(name, importances, baseline or len(importances), mac, weights)


@pytest.mark.parametrize(
    ("baseline", "n_min", "rho", "kept"),
    [
        (64, 2, 0.25, 16),
        (10, 2, 0.25, 3),  # 2.5 rounds up
        (10, 4, 0.25, 4),  # n_min is the larger one
        (3, 4, 0.0, 3),  # no more than there are
        (20, 1, 0.55, 11),  # 0.55 * 20 is a little above 11 in binary
    ],
)
def test_depth_keeps_the_larger_of_a_number_and_a_share(baseline: int, n_min: int, rho: float, kept: int) -> None:
    assert rules.keep_depth(baseline, n_min, rho) == kept


@pytest.mark.parametrize(
    ("mac", "weights", "power", "factor"),
    [
        (90.0, 10.0, 0.5, math.sqrt(3)),  # 9 MACs for a weight against 3
        (90.0, 10.0, 1.0, 2.0),  # 3, limited to 2
        (10.0, 10.0, 1.0, 0.5),  # a third, limited to a half
        (10.0, 5.0, 1.0, 2 / 3),
        (90.0, 10.0, 0.0, 1.0),
        (0.0, 0.0, 1.0, 1.0),  # nothing to compare
    ],
)
def test_efficiency_prefers_what_costs_more_macs_for_its_weights(
    mac: float, weights: float, power: float, factor: float
) -> None:
    assert rules.mac_efficiency(mac, weights, *TOTAL, power, (0.5, 2.0)) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("before", "pruned", "after"),
    [
        (1.0, 0.1, math.exp(0.4)),  # lags behind the mean of 0.3: a higher threshold
        (1.0, 0.5, math.exp(-0.4)),  # ahead of it: a lower one
        (1.2, 0.3, 1.2),
        (1.5, 0.1, 2.0),  # 2.24, limited
        (0.6, 0.5, 0.5),  # 0.40, limited
    ],
)
def test_balance_raises_the_threshold_of_a_lagging_group(before: float, pruned: float, after: float) -> None:
    assert rules.balance(before, pruned, 0.3, 2.0, (0.5, 2.0)) == pytest.approx(after)


@pytest.mark.parametrize(
    ("importances", "threshold", "keep", "at_most", "gone"),
    [
        ((0.5, 0.1, 0.9, 0.3), 0.6, 1, 9, (0, 1, 3)),
        ((0.5, 0.1, 0.9, 0.3), 0.6, 1, 2, (1, 3)),  # the cap leaves the strongest
        ((0.5, 0.1, 0.9, 0.3), 0.6, 3, 9, (1,)),  # the floor does
        ((0.5, 0.1), 0.6, 4, 9, ()),  # already below its floor
        ((0.2, 0.2, 0.2), 0.5, 1, 2, (0, 1)),  # equals in order
        ((0.5, 0.4), 0.5, 1, 9, (1,)),  # at the threshold stays
        ((0.5, 0.4), 0.3, 1, 9, ()),
    ],
)
def test_selection_takes_the_weakest_below_the_threshold(
    importances: tuple[float, ...], threshold: float, keep: int, at_most: int, gone: tuple[int, ...]
) -> None:
    assert rules.select(importances, threshold, keep, at_most) == gone


@pytest.mark.parametrize(
    ("units", "align", "step"),
    [
        ((1,), 1, 1),
        ((1,), 8, 8),
        ((4,), 8, 2),  # four channels of the layer to one of the group
        ((1, 4), 8, 8),  # before and after a PixelShuffle
        ((2, 4), 8, 4),
        ((3,), 8, 8),
        ((16,), 8, 1),
        ((4,), 6, 3),
        ((4, 6), 8, 4),
    ],
)
def test_a_step_is_the_fewest_channels_that_align_every_layer(units: tuple[int, ...], align: int, step: int) -> None:
    assert rules.channel_step(units, align) == step
    assert all(step * unit % align == 0 for unit in units)
    assert not any(all(fewer * unit % align == 0 for unit in units) for fewer in range(1, step))


@pytest.mark.parametrize(
    ("channels", "below", "keep", "at_most", "step", "gone"),
    [
        (24, 15, 1, 24, 8, 8),  # 9 would be left: rounded up to 16
        (24, 16, 1, 24, 8, 16),
        (24, 24, 1, 24, 8, 16),  # never to zero
        (24, 7, 1, 24, 8, 0),  # 17 would be left: 24
        (24, 24, 9, 24, 8, 8),  # the floor of 9, rounded up
        (24, 24, 1, 12, 8, 8),  # the cap leaves 12: 16
        (20, 3, 1, 20, 8, 0),  # no multiple to begin with: stays
        (20, 4, 1, 20, 8, 4),  # or goes down to one
        (20, 20, 1, 20, 8, 12),
        (6, 6, 1, 6, 8, 0),  # fewer than a multiple: stays whole
        (6, 5, 1, 6, 2, 4),
    ],
)
def test_what_is_left_is_rounded_up_to_a_multiple(
    channels: int, below: int, keep: int, at_most: int, step: int, gone: int
) -> None:
    importances = tuple(0.1 * j for j in range(channels))
    threshold = 0.1 * below - 0.05
    assert rules.select(importances, threshold, keep, at_most, step) == tuple(range(gone))


def test_a_share_below_a_step_lets_one_step_go(settings: config.Settings) -> None:
    eights = settings.model_copy(update={"align": 8, "max_share": 0.15})
    groups = {
        "small": group("small", tuple(0.01 * j for j in range(16))),  # 15% are 2 channels
        "large": group("large", tuple(0.01 * j for j in range(120))),  # 18: 102 would be left, so 104
        "tiny": group("tiny", tuple(0.01 * j for j in range(8))),
    }
    plan = rules.plan(list(groups.values()), State(9.0, 0.1), 9.0, ("adaptive",), eights, TOTAL)
    assert plan.removed == {"small": tuple(range(8)), "large": tuple(range(16))}


def test_the_shuffled_layers_channels_are_aligned_and_not_the_groups(settings: config.Settings) -> None:
    eights = settings.model_copy(update={"align": 8, "max_share": 1.0})
    shuffled = GroupState("up", (0.1, 0.2, 0.3, 0.4, 0.5), 5, 3.0, 1.0, units=(4,))  # 20 channels of its layer
    plan = rules.plan([shuffled], State(0.25, 0.1), 0.25, ("adaptive",), eights, TOTAL)
    assert plan.removed == {"up": (0,)}  # 3 would be left, 12 channels of the layer: 4 and 16
    both = GroupState("up", (0.1, 0.2, 0.3, 0.4, 0.5), 5, 3.0, 1.0, units=(1, 4))
    assert rules.plan([both], State(9.0, 0.1), 9.0, ("adaptive",), eights, TOTAL).removed == {}


def test_alpha_rises_until_a_whole_step_falls_below(settings: config.Settings) -> None:
    fours = settings.model_copy(update={"align": 4, "max_share": 0.1})
    eight = group("eight", (0.1, 0.2, 0.3, 1.0, 1.1, 1.2, 1.3, 1.4))
    plan = rules.next_plan([eight], State(0.5, 0.5), ("adaptive",), fours, TOTAL)
    assert plan.alpha == pytest.approx(0.5 * 1.5**2)  # 0.75 leaves the fourth channel, 1.125 doesn't
    assert plan.removed == {"eight": (0, 1, 2, 3)}


@pytest.mark.parametrize(
    ("active", "left", "floor"),
    [
        (("adaptive",), 8, 8),
        (("adaptive",), 5, 8),
        (("adaptive", "depth"), 24, 24),  # keeps max(2, 68/4) = 17: 24
    ],
)
def test_a_group_at_its_aligned_floor_cant_be_pruned(
    settings: config.Settings, active: tuple[str, ...], left: int, floor: int
) -> None:
    eights = settings.model_copy(update={"align": 8})
    low = group("low", (0.1,) * left, baseline=68)
    assert rules.floor(low, active, eights) == floor
    assert rules.next_plan([low], State(1.0, 0.1), active, eights, TOTAL) is None
    more = group("more", (0.1,) * (floor + 1), baseline=68)
    assert rules.next_plan([more], State(1.0, 0.1), active, eights, TOTAL).removed == {"more": (0,)}


COSTLY = group("costly", (0.9, 1.1, 1.3, 1.7), mac=4.5)  # e = 4.5/1 over 3 = 1.5
CHEAP = group("cheap", (0.9, 1.1, 1.3, 1.7), mac=1.8)  # e = 0.6
STATE = State(alpha=1.0, step=0.1, balance={"cheap": 2.0, "costly": 0.5})


@pytest.mark.parametrize(
    ("active", "thresholds", "removed"),
    [
        (("adaptive",), (1.0, 1.0), {"costly": (0,), "cheap": (0,)}),
        (("adaptive", "depth"), (1.0, 1.0), {"costly": (0,), "cheap": (0,)}),
        (("adaptive", "depth", "efficiency"), (1.5, 0.6), {"costly": (0, 1)}),
        (("adaptive", "depth", "efficiency", "balance"), (0.75, 1.2), {"cheap": (0, 1)}),
        (("adaptive", "balance"), (0.5, 2.0), {"cheap": (0, 1)}),
    ],
)
def test_each_rule_set_has_its_own_threshold(
    settings: config.Settings, active: tuple[str, ...], thresholds: tuple[float, float], removed: dict
) -> None:
    plan = rules.plan([COSTLY, CHEAP], STATE, 1.0, active, settings, TOTAL)
    assert (plan.thresholds["costly"], plan.thresholds["cheap"]) == pytest.approx(thresholds)
    assert plan.removed == removed
    assert plan.alpha == 1.0


def test_one_iteration_takes_no_more_than_its_share_of_a_group(settings: config.Settings) -> None:
    ten = group("ten", tuple(0.1 * i for i in range(10)))
    for share, gone in ((0.3, 3), (0.39, 3), (0.05, 1), (1.0, 9)):  # one at least; one channel stays
        capped = settings.model_copy(update={"max_share": share})
        assert rules.plan([ten], State(9.0, 0.1), 9.0, ("adaptive",), capped, TOTAL).removed == {
            "ten": tuple(range(gone))
        }


def test_the_share_counts_whole_channels_in_spite_of_binary_fractions(settings: config.Settings) -> None:
    hundred = group("hundred", tuple(0.01 * i for i in range(100)))
    capped = settings.model_copy(update={"max_share": 0.29})  # 0.29 * 100 is a little below 29 in binary
    assert len(rules.plan([hundred], State(9.0, 0.1), 9.0, ("adaptive",), capped, TOTAL).removed["hundred"]) == 29


def test_the_floor_is_a_share_of_the_baseline_under_depth_and_one_channel_else(settings: config.Settings) -> None:
    left = group("left", (0.1, 0.2, 0.3, 0.4), baseline=12)  # keeps max(2, 12/4) = 3
    assert rules.floor(left, ("adaptive", "depth"), settings) == 3
    assert rules.floor(left, ("adaptive",), settings) == 1
    assert rules.plan([left], State(9.0, 0.1), 9.0, ("adaptive", "depth"), settings, TOTAL).removed == {"left": (0,)}


def test_alpha_rises_only_until_something_goes(settings: config.Settings) -> None:
    weak, strong = group("weak", (0.9, 1.2)), group("strong", (2.0, 2.0))
    plan = rules.next_plan([weak, strong], State(0.5, 0.2), ("adaptive",), settings, TOTAL)
    assert plan.alpha == pytest.approx(0.5 * 1.2**4)  # 0.864 is still below 0.9, 1.0368 isn't
    assert plan.removed == {"weak": (0,)}
    assert rules.next_plan([weak], State(0.95, 0.2), ("adaptive",), settings, TOTAL).alpha == 0.95


def test_nothing_is_planned_when_no_group_can_be_pruned(settings: config.Settings) -> None:
    pair, single = group("pair", (0.1, 0.2), baseline=4), group("single", (0.1,))
    state = State(1.0, 0.1)
    assert rules.next_plan([single], state, ("adaptive",), settings, TOTAL) is None
    assert rules.next_plan([pair, single], state, ("adaptive", "depth"), settings, TOTAL) is None  # n_min is 2
    assert rules.next_plan([pair], State(1.0, 0.1, frozen=frozenset({"pair"})), ("adaptive",), settings, TOTAL) is None
    assert rules.next_plan([pair, single], state, ("adaptive",), settings, TOTAL).removed == {"pair": (0,)}
    assert rules.next_plan([], state, ("adaptive",), settings, TOTAL) is None


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_importances_that_are_no_numbers_end_the_search(settings: config.Settings, broken: float) -> None:
    assert rules.next_plan([group("g", (broken, broken))], State(1.0, 0.1), ("adaptive",), settings, TOTAL) is None


def test_only_suspects_are_eligible_after_a_rejection(settings: config.Settings) -> None:
    first, second = group("first", (0.1, 2.0)), group("second", (0.5, 2.0))
    state = State(0.3, 0.1, suspects=("second",))
    plan = rules.next_plan([first, second], state, ("adaptive",), settings, TOTAL)
    assert plan.removed == {"second": (0,)}
    assert plan.alpha > 0.5


def test_an_acceptance_raises_alpha_clears_suspicion_and_leaves_balance_to_its_rule(settings: config.Settings) -> None:
    state = State(0.8, 0.025, {}, frozenset({"c"}), ("a",))
    done = Plan(1.0, {}, {"a": (0, 1)})
    now = [group("a", (1.0, 1.0), baseline=4), group("b", (1.0,) * 4)]  # pruned by 0.5 and 0; mean 0.25
    after = rules.after_accepted(state, done, now, ("adaptive", "efficiency"), settings)
    assert after == State(1.1, 0.1, {}, frozenset({"c"}), ())
    balanced = rules.after_accepted(state, done, now, ("adaptive", "balance"), settings)
    assert balanced.balance == pytest.approx({"a": math.exp(-0.5), "b": math.exp(0.5)})
    again = rules.after_accepted(balanced, done, now, ("adaptive", "balance"), settings)
    assert again.balance == pytest.approx({"a": 0.5, "b": 2.0})  # exp(-1) and exp(1), limited


def test_a_rejection_shrinks_alpha_and_suspects_the_half_that_saved_most(settings: config.Settings) -> None:
    groups = [group("a", (1.0,) * 4, mac=10.0), group("b", (1.0,) * 4, mac=5.0), group("c", (1.0,) * 4, mac=1.0)]
    done = Plan(1.2, {}, {"a": (0,), "b": (0, 1, 2), "c": (0,)})  # they save 10, 15 and 1
    after = rules.after_rejected(State(1.0, 0.1), done, groups)
    assert after.step == 0.05
    assert after.alpha == pytest.approx(1.0 / 1.05)  # from the last accepted alpha, not the raised one
    assert after.suspects == ("b",)
    assert not after.frozen
    four = Plan(0.9, {}, done.removed | {"d": (0,)})
    after = rules.after_rejected(State(1.0, 0.1), four, [*groups, group("d", (1.0,) * 4, mac=40.0)])
    assert after.suspects == ("d", "b")
    assert after.alpha == pytest.approx(0.9 / 1.05)


def test_a_group_that_fails_alone_is_frozen_and_the_others_are_free_again() -> None:
    state = State(1.0, 0.1, frozen=frozenset({"z"}), suspects=("b",))
    after = rules.after_rejected(state, Plan(1.0, {}, {"b": (0,)}), [group("b", (1.0, 1.0))])
    assert after.frozen == {"z", "b"}
    assert after.suspects == ()
    assert rules.eligible(group("a", (1.0,)), after)
    assert not rules.eligible(group("b", (1.0,)), after)
