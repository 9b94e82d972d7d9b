"""The fine-tune of a pruned network, and the search for the smallest one that passes the gate after it."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn

from pipeline import config, records
from pipeline.evaluation.metrics import Quality
from pipeline.files import write_json
from pipeline.networks import checkpoint, duplicate
from pipeline.progress import Progress
from pipeline.pruning import coupling, criteria, reconstruction, removal, rules
from pipeline.pruning.gate import judge
from pipeline.pruning.importance import group_states, reference_magnitudes
from pipeline.pruning.iterations import Iteration
from pipeline.pruning.prune import Current, cut
from pipeline.training.control import point
from pipeline.training.loop import NonFiniteLossError
from pipeline.training.recipes import train_final
from pipeline.training.setup import Setup

FINEST = 0.05  # of the baseline's MACs: nearer than this, what is delivered isn't brought to what the gate allows
LEAST = 0.01  # of the baseline's MACs: an attempt that could gain less isn't worth its training
CLOSEST = Fraction(1, 32)  # of an iteration: where the search ends at the latest


@dataclass(frozen=True)
class Finetuned:
    """The final network of a method."""

    network: nn.Module
    kept: dict[str, dict[int, list[int]]]
    attempts: list[str]  # a sentence for each network that was fine-tuned; this network's ends in records.DELIVERED
    steps: int  # of training that the network has had since it was the baseline
    place: int  # of its own sentence among them


@dataclass(frozen=True)
class Candidate:
    """A network to fine-tune: of an accepted iteration, or with a part of what the next one removed."""

    network: nn.Module
    kept: dict[str, dict[int, list[int]]]
    mac: int
    name: str
    steps: int  # of training behind it


def write(done: Finetuned, baseline: nn.Module, setup: Setup, target: Quality, folder: Path) -> dict[str, Any]:
    """The files of `finetune` in `folder`: network.pt, attempts.json, end.json (validation quality, also of each image)
    and metrics.json, whose figures are returned.

    target: the reference's quality on the validation images.
    """
    measured, spent, whole = setup.quality(done.network), setup.cost(done.network), setup.cost(baseline)
    figures = {
        "mac_percent": 100 * spent.mac / whole.mac, "bw_percent": 100 * spent.bw / whole.bw,
        "psnr": measured.mean_psnr, "ssim": measured.mean_ssim, "psnr_change": measured.mean_psnr - target.mean_psnr,
        "ssim_change": measured.mean_ssim - target.mean_ssim, "steps": done.steps,
    }  # fmt: skip
    section, path = setup.network, folder / "network.pt"
    checkpoint.save(path, done.network, section.factory, section.args, done.kept, example=setup.example())
    write_json(folder / "attempts.json", done.attempts)
    write_json(folder / "end.json", point(done.steps, measured))
    write_json(folder / "metrics.json", figures)
    return figures


def finetune(
    networks: list[Path],
    log: list[Iteration],
    setup: Setup,
    settings: config.Settings,
    recipe: config.Finetune,
    target: Quality,
    scratch: Path,
    progress: Progress,
) -> Finetuned:
    """Train the last accepted network on, and networks around it, until the smallest one that holds is known.

    networks: accepted-NNN.pt, oldest first; the first is the baseline, which is the result when no other one holds.
    log: of `prune`. target: the reference's quality; there is no tolerance any more. A network holds when it passes the
    gate after its fine-tune, or as it was before. When the last one does, the search goes on between it and the
    iteration that was refused after it. When it doesn't, one iteration is undone, then two more, then four more, until
    one holds. A bisection from there, over iterations and over parts of what one removed, ends when the smallest
    network that holds is known to `FINEST`.
    """
    attempts: list[str] = []
    path = [iteration for iteration in log if iteration.verdict == "accepted"]
    refused = log[path[-1].number + 1 :]
    path += [iteration for iteration in refused if iteration.mac < path[-1].mac][:1]  # the others have no network
    baseline, _ = checkpoint.load(networks[0], setup.network.factory)
    baseline.to(setup.machine.device)
    whole = setup.cost(baseline).mac

    def candidate(place: Fraction) -> Candidate:
        """The network of an accepted iteration, counted from 0, or after it with that share of the next one's cut."""
        number = min(int(place), len(networks) - 1)
        network, meta = checkpoint.load(networks[number], setup.network.factory)
        network.to(setup.machine.device)
        name, kept = f"iteration {path[number].number}", meta["kept"]
        if place != number:
            after = path[number + 1]
            network, kept = partial(network, kept, after, place - number, setup, settings, baseline)
            name += f" and {float(place - number):.0%} of what {after.number} removed"
        return Candidate(network, kept, setup.cost(network).mac, name, number * setup.iteration_steps)

    def attempt(one: Candidate) -> Finetuned | None:
        """Fine-tune a network; what is delivered when it holds, else None."""
        before, untrained, base = setup.quality(one.network), duplicate(one.network), progress.base
        if attempts:
            progress.extend(recipe.steps)
        resume = scratch / f"finetune-{len(attempts):03d}.pt"
        try:
            train_final(one.network, setup, recipe, resume, progress, baseline)
        except NonFiniteLossError as error:
            holds, reason, progress.base = False, f"{error}", base + recipe.steps
        else:
            holds, reason = judge(setup.quality(one.network), target, setup.gate)
        attempts.append(f"{one.name}, {100 * one.mac / whole:.1f}% of the MACs: {reason}")
        progress.say(f"{attempts[-1]} — {'holds' if holds else 'is given back'}")
        if holds:
            return Finetuned(one.network, one.kept, attempts, one.steps + recipe.steps, len(attempts) - 1)
        holds, reason = judge(before, target, setup.gate)
        if holds or one.mac == whole:
            attempts.append(f"{one.name} is kept as it was before fine-tuning: {reason}")
            progress.say(attempts[-1])
            return Finetuned(untrained, one.kept, attempts, one.steps, len(attempts) - 1)
        return None

    good, bad = Fraction(0), Fraction(len(networks) - 1)  # the latest place that holds, the earliest that doesn't
    last, largest = candidate(bad), whole
    best, too_small = attempt(last), last.mac
    if best is not None:
        if len(path) == len(networks):  # nothing was refused after it
            return delivered(best)
        good, bad, largest = bad, bad + 1, last.mac
        too_small = candidate(bad).mac
    back = 1  # iterations: the edge is likely near the last one
    while largest - too_small > FINEST * whole:
        if best is None and bad > back:
            middle, back = bad - back, 2 * back
        else:
            middle = (good + bad) / 2
            middle = Fraction(round(middle)) if bad - good > 1 else middle
        one = candidate(middle)
        if min(largest - one.mac, one.mac - too_small) < LEAST * whole:  # hardly a channel lies between
            if bad - good < CLOSEST:
                break
            good, bad = (middle, bad) if largest - one.mac < one.mac - too_small else (good, middle)
            continue
        result = attempt(one)
        if result is None:
            bad, too_small = middle, one.mac
        else:
            best, good, largest = result, middle, one.mac
    best = best or attempt(candidate(Fraction(0)))
    assert best is not None  # the baseline is delivered in any case
    return delivered(best)


def delivered(done: Finetuned) -> Finetuned:
    """The same, with its own sentence marked."""
    done.attempts[done.place] += records.DELIVERED
    return done


def partial(
    network: nn.Module,
    kept: dict[str, dict[int, list[int]]],
    after: Iteration,
    share: Fraction,
    setup: Setup,
    settings: config.Settings,
    baseline: nn.Module,
) -> tuple[nn.Module, dict[str, dict[int, list[int]]]]:
    """The network after a share of what an iteration removed, by MACs, its strongest channels given back; what is kept.

    It is that iteration with a lower alpha: of the channels that it removed, those that lie lowest below their group's
    threshold go. after: its log. Groups keep multiples of `align` channels as they did.
    """
    groups = coupling.find_groups(network, setup.example(network).to(setup.machine.device), settings.norms)
    channels = {group.name: group.channels for group in groups.groups}
    reference, spent = reference_magnitudes(baseline, groups), setup.cost(network)
    known = None
    if settings.reconstruct or settings.criterion == "saliency":
        known = reconstruction.moments(network, groups, setup.sample_pairs())
    limits = {name: rules.group_cap(count, settings, 1) for name, count in channels.items()}
    scores = criteria.scores(settings.criterion, network, groups, setup, limits, known)
    states = group_states(network, spent, groups, reference, channels, settings.criterion, scores)
    order = sorted(
        (importance / (after.thresholds.get(state.name) or 1.0), state.name)
        for state in states
        for importance in sorted(state.importances)[: after.removed.get(state.name, 0)]
    )

    def weakest(number: int) -> dict[str, tuple[int, ...]]:
        counts = Counter(name for _, name in order[:number])
        steps = {state.name: rules.channel_step(state.units, settings.align) for state in states}
        gone = {
            state.name: rules.select(state.importances, math.inf, 1, counts[state.name], steps[state.name])
            for state in states
        }
        return {name: those for name, those in gone.items() if those}

    def mac(number: int) -> int:
        return setup.cost(removal.remove(network, groups, weakest(number))).mac

    aim = spent.mac - share * (spent.mac - mac(len(order)))
    number = bisect.bisect_left(range(len(order)), True, key=lambda number: mac(number) <= aim)
    if number and mac(number - 1) - aim < aim - mac(number):
        number -= 1
    smaller = cut(Current(network, groups, kept), weakest(number), known if settings.reconstruct else None)
    return smaller.network, smaller.kept
