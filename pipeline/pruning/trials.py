"""Trials of a removal: whether a shrunk network computes what the masked one computes.

`settle` runs them and refuses the groups that fail. Its docstring says what no trial sees. rehearsal.py makes the
networks and images that are tried, ways.py finds the sizes, counts and runs at which a forward does something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from pipeline.errors import first_line
from pipeline.networks import duplicate
from pipeline.pruning.norms import Statistics, over_kept
from pipeline.pruning.rehearsal import (
    CORNER,
    FAILURES,
    RUNS,
    Removals,
    alter,
    cast,
    chosen,
    failure,
    loud,
    precision,
    quake,
    rehearse,
    result,
    shrunk,
    spread,
    starved,
    tremor,
)
from pipeline.pruning.removal import Group, masked, remove, silence
from pipeline.pruning.ways import counts, detours, operations, wakes

OTHER = "a forward that gives another result when channels go"
UNSEEN = "a trial in which the effect of its removal on the output can't be measured"


def settle(
    network: nn.Module, example: torch.Tensor, candidates: dict[Group, str], idle: Sequence[str], statistics: Statistics
) -> tuple[list[Group], dict[Group, str]]:
    """Try removals, and refuse the groups whose removal the forward doesn't follow.

    A group behind sizes that may be numbers is tried by itself with several counts, because half sizes such as
    `channels // 2` follow some counts by luck. Then all groups are tried at once, and only if that fails one by one.
    Float64 sees what a group gets wrong even beside all others' effect (1.5e-8 of it); in float32, or with the
    network's own weights, whose scales may be 0, each group is judged by what it adds to the effect itself.
    Training mode is tried too, in case the forward takes another way there. idle: the layers that don't run in
    evaluation. With any, a larger image is tried as well; and where training runs them, it is tried 32 times, because
    chance may choose the way.

    Of channels that a normalisation takes its statistics over, the masked network leaves the removed ones out of these
    (`norms.over_kept`).

    What passes is tried with a loud image, with other buffers, with the network's own weights, with other shares of one
    group than of another, and wherever the forward runs other operations at other sizes or with fewer channels
    (`second_look`). What no trial sees: a way that only
    sizes or counts between the tried ones take, one that an input's type or values choose beyond 65,536, and state
    outside of tensors (an attribute, a global, the clock, the process) that is another one later.
    """
    rng = torch.Generator().manual_seed(0)
    picture = torch.rand(example.shape, generator=rng).to(example)
    own = duplicate(network).eval().requires_grad_(False)
    found = rehearse(own, picture, rng)
    if found is None:
        return [], dict.fromkeys(candidates, "a trial of its removal that gives no finite output")
    trial, image, full, coarse = found
    tiny = shrunk(own, picture)
    doubtful = coarse or any(candidates.values())
    wobble = tremor(trial, image, full) if doubtful else 0.0
    batch = picture.repeat(2, 1, 1, 1)
    runs = RUNS if idle and wakes(own, batch, idle) else 1
    ways = [("in training", batch, seed) for seed in range(runs)]
    ways += [("on a larger image", picture.repeat(1, 1, 2, 2), 0)] if idle else []
    troubled: dict[int, bool] = {}  # ways that the whole network fails in too

    def failing(small: nn.Module) -> str:
        for number, way in enumerate(ways):
            text = failure(small, *way)
            if text and number not in troubled:
                troubled[number] = bool(failure(duplicate(own), *way))
            if text and not troubled[number]:
                return f"a forward that fails {text}"
        return ""

    def fault(removed: Removals, before: torch.Tensor = full, more: bool = True) -> tuple[str, torch.Tensor]:
        """Why the shrunk network doesn't do what the masked one does, or nothing; and the masked one's output.

        before: the output that the effect of this removal is counted from. more: whether to try a loud image and other
        buffers too.
        """
        coupling, indices = chosen(removed)
        whole = before
        with torch.no_grad():
            try:
                reference, small = masked(trial, coupling, indices), remove(trial, coupling, indices)
                over_kept(reference, statistics, indices)
                whole = reference(image.clone())
                made = small(image.clone())
            except FAILURES as error:  # whatever a forward may raise when its tensors are smaller
                return f"a forward that fails when channels go ({first_line(error)})", whole
        reason = difference(made, whole, before, wobble) if removed else ""
        if not reason and more and departs(reference, small, loud(tiny.to(image.dtype))):
            reason = OTHER
        lone = {name for name, buffer in trial.named_buffers() if buffer.numel() == 1}
        if not reason and more and alter(small, lone) and alter(reference, lone):
            silence(reference, coupling, indices)
            reason = OTHER if departs(reference, small, tiny.to(image.dtype)) else ""
        if not reason:
            reason = failing(cast(small, picture.dtype))
        return reason, whole

    refused = {}
    for group, doubt in candidates.items():
        if doubt:
            every = range(group.channels)
            tries = dict.fromkeys(tuple(part) for part in (every[::2], every[:1], every[-1:], every[1:]))
            seen = False
            for gone in tries:
                reason = fault({group: gone}, more=False)[0] if 0 < len(gone) < group.channels else UNSEEN
                seen = seen or not reason
                if reason not in ("", UNSEEN):
                    refused[group] = doubt
                    break
            if not seen and group not in refused and group.channels > 1:
                refused[group] = UNSEEN
    accepted: Removals = {group: range(0, group.channels - 1, 2) for group in candidates if group not in refused}
    if coarse or fault(accepted)[0]:
        wobble = wobble if doubtful else tremor(trial, image, full)
        tried, accepted, before = accepted, {}, full
        for group, part in tried.items():
            reason, whole = fault(accepted | {group: part}, before)
            if reason and len(part):
                refused[group] = reason
            else:
                accepted[group], before = part, whole
    for group in second_look(own, picture, tiny, trial, list(accepted), statistics):
        refused[group] = OTHER
        del accepted[group]
    return list(accepted), refused


def second_look(
    own: nn.Module,
    picture: torch.Tensor,
    tiny: torch.Tensor,
    trial: nn.Module,
    groups: list[Group],
    statistics: Statistics,
) -> set[Group]:
    """The groups whose removal the forward doesn't follow with its own weights, at other sizes or at other counts.

    Only what is wrong counts here, not whether an effect is seen: weights of a network's own may be 0.
    """
    refused: set[Group] = set()
    dtype = precision(trial)

    def unlike(removed: Removals, images: list[torch.Tensor]) -> bool:
        coupling, indices = chosen(removed)
        try:
            reference = cast(duplicate(own), dtype)
            silence(reference, coupling, indices)
            small = remove(reference, coupling, indices)
            over_kept(reference, statistics, indices)
        except FAILURES:  # a module's own copying may raise anything
            return True
        return any(departs(reference, small, image.to(dtype)) for image in images)

    def look(parts: dict[Group, Sequence[int]], images: list[torch.Tensor]) -> None:
        removed: Removals = {group: parts[group] for group in groups if group not in refused}
        if unlike(removed, images):
            kept: Removals = {}
            for group, gone in removed.items():
                if len(gone) and unlike(kept | {group: gone}, images):
                    refused.add(group)
                else:
                    kept[group] = gone

    if not groups:
        return refused
    usual, precise = operations(own, tiny.shape), operations(trial, tiny.shape)

    def shares(share: float) -> dict[Group, Sequence[int]]:
        return {group: spread(group, share) for group in groups}

    look(shares(1 / 3), [tiny / 256, loud(tiny), *(detours(own, picture, groups, usual) if usual else [])])
    for share in counts(duplicate(own), tiny, groups, usual.steps) if usual else []:
        look(shares(share), [tiny, loud(tiny)])
    for parts in uneven(groups):
        look(parts, [tiny])
    if usual and precise and usual.names != precise.names:  # it takes another way in the type of its images
        dtype = picture.dtype
        look(shares(1 / 2), [tiny, loud(tiny)])
    return refused


def uneven(groups: Sequence[Group]) -> Iterator[dict[Group, Sequence[int]]]:
    """Removals after which two layers have other counts beside each other than in the whole network.

    Any two groups differ in one of the first: half of each group's channels goes, or none, by a bit of its number. In
    the others every group that can keeps as many channels as another one has.
    """
    for bit in range((len(groups) - 1).bit_length() + 1):
        yield {group: range(group.channels // 2 if number + 1 >> bit & 1 else 0) for number, group in enumerate(groups)}
    for width in sorted({group.channels for group in groups})[:-1]:
        yield {group: range(max(0, group.channels - width)) for group in groups}


def departs(reference: nn.Module, small: nn.Module, image: torch.Tensor) -> bool:
    """Whether a shrunk network gives something else than the masked one; False where the masked one itself fails.

    A corner may leave a norm over channels a single value, which torch refuses: then twice the sides count. Errors of
    rounding in the weights excuse little, since behind a rounding of the network's own they would excuse whole steps.
    """
    whole, made = result(reference, image), result(small, image)
    if made is None and max(image.shape[2:]) <= CORNER and starved(small, image):
        image = image.repeat(1, 1, 2, 2)
        whole, made = result(reference, image), result(small, image)
    if whole is None:
        return False
    if made is None or made.shape != whole.shape or not torch.equal(made.isfinite(), whole.isfinite()):
        return True
    finite = whole.isfinite()
    if not finite.any():
        return False
    off = float((made - whole)[finite].abs().max())
    noise = 256 * torch.finfo(whole.dtype).eps * float(whole[finite].abs().max())
    if off <= noise or off <= 16 * tremor(reference, image, whole):
        return False
    return off > 4 * noise or off > 16 * quake(reference, image, whole)


def difference(made: torch.Tensor, whole: torch.Tensor, before: torch.Tensor, wobble: float = 0.0) -> str:
    """What is wrong with the output of a shrunk network, beside that of the masked and of the unmasked one.

    Where the masked network's own output isn't finite (the logarithm of something negative), nothing is compared, but
    the shrunk one's mustn't be finite there either. wobble: what rounding is known to change in the output.
    """
    if made.shape != whole.shape or not torch.equal(made.isfinite(), whole.isfinite()):
        return OTHER
    finite = whole.isfinite()
    seen = finite & before.isfinite()
    if not seen.any():
        return UNSEEN
    eps = torch.finfo(whole.dtype).eps
    effect, size = float((whole - before)[seen].abs().max()), float(whole[finite].abs().max())
    noise = max(256 * eps * max(size, float(before[seen].abs().max())), 16 * wobble)  # of rounding in many layers
    if not float((made - whole)[finite].abs().max()) <= max(eps**0.5 * min(effect, size), noise):
        return OTHER
    return UNSEEN if min(effect, size) <= 16 * noise else ""  # also where the masked network's output fades
