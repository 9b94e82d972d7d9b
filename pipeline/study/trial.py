"""One trial of a study: prune by these numbers, fine-tune once, measure. It knows nothing of Optuna."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.networks import checkpoint
from pipeline.progress import Silent
from pipeline.pruning import gate, iterations, prune, rules
from pipeline.training import recipes
from pipeline.training.loop import NonFiniteLossError
from pipeline.training.setup import Setup

Values = dict[str, float]
Report = Callable[[int, float, float], None]  # iteration, MACs kept now, and the least that can be kept in the end


@dataclass(frozen=True)
class Outcome:
    """What a finished trial found."""

    mac_kept: float  # share of the original's MACs: what is minimised
    constraints: dict[
        str, float
    ]  # psnr_drop in dB, and ssim_drop if asked, beyond what the gate allows; 0 or less holds
    notes: dict[str, Any] = field(default_factory=dict)  # user attributes: drops against baseline and control, steps

    @property
    def feasible(self) -> bool:
        return all(value <= 0 for value in self.constraints.values())


class CannotWinError(Exception):
    """A trial has removed so little that no more iterations could make it the winner."""

    def __init__(self, mac_kept: float, notes: dict[str, Any] | None = None) -> None:
        super().__init__(f"it keeps {100 * mac_kept:.1f}% of the MACs and can't get below the best feasible trial")
        self.mac_kept, self.notes = mac_kept, notes or {}


@dataclass(frozen=True)
class Problem:
    """What the trials of a study share: the chain's baseline and control, which are never trained again."""

    setup: Setup
    numbers: config.Settings
    active: tuple[str, ...]
    recipe: config.Finetune
    baseline: Path
    target: gate.Target  # of the iterations
    final: tuple[float, float]  # of the fine-tuned network: PSNR in dB, SSIM
    rivals: dict[str, float]  # PSNR in dB of the baseline and of the control's end
    ssim: bool  # whether SSIM must hold as well

    @property
    def constraints(self) -> tuple[str, ...]:
        return ("psnr_drop", "ssim_drop") if self.ssim else ("psnr_drop",)


def measure(
    problem: Problem,
    values: Values,
    work: Path,
    report: Report,
    on_iteration: Callable[[iterations.Iteration, int], None] = lambda iteration, total: None,
) -> Outcome:
    """One trial: prune by these numbers, fine-tune the last accepted network once, measure it.

    An undo after the fine-tune, which the chain has, would make every trial feasible and most of them the same; here
    the drop tells the sampler where the parameters fail. Of a feasible trial, the chain makes the same network.
    Unfinished work lies in `work`, and is gone on with.
    """
    setup = problem.setup
    numbers = config.checked_rules(problem.numbers, values)
    network, _ = checkpoint.load(problem.baseline, setup.network.factory)
    total, accepted, steps = setup.cost(network).mac, [], 0
    whole = numbers.max_iterations * setup.iteration_steps + problem.recipe.steps

    def follow(iteration: iterations.Iteration) -> None:
        nonlocal steps
        steps = iteration.number * setup.iteration_steps
        if iteration.verdict == "accepted":
            accepted.append(iteration)
        on_iteration(iteration, total)
        kept = accepted[-1].mac / total
        left = numbers.max_iterations - iteration.number
        tell(iteration.number, kept, kept * least_share(accepted[0], accepted[-1], numbers, problem.active, left))

    def tell(number: int, kept: float, at_least: float) -> None:
        try:
            report(number, kept, at_least)
        except CannotWinError as error:
            raise CannotWinError(error.mac_kept, {"steps": steps, "saved_share": 1 - steps / whole}) from None

    log = prune.prune(network, setup, numbers, problem.active, problem.target, work, Silent(), follow)
    last = accepted[-1]
    tell(len(log) - 1, last.mac / total, last.mac / total)  # the fine-tune removes nothing

    pruned, _ = checkpoint.load(work / f"accepted-{last.number:03d}.pt", setup.network.factory)
    with contextlib.suppress(NonFiniteLossError):  # then it is judged as it was left
        recipes.train_final(pruned, setup, problem.recipe, work / "finetune.pt", Silent())
    measured = setup.quality(pruned)
    found = (measured.mean_psnr, measured.mean_ssim)
    allowed = {"psnr_drop": setup.gate.max_psnr_drop, "ssim_drop": setup.gate.max_ssim_drop}
    drops = {"psnr_drop": problem.final[0] - found[0], "ssim_drop": problem.final[1] - found[1]}
    against = {f"psnr_drop_{name}": psnr - found[0] for name, psnr in problem.rivals.items()}
    notes = against | drops | {"steps": steps + problem.recipe.steps, "saved_share": 0.0}
    beyond = {key: drops[key] - allowed[key] for key in problem.constraints}
    return Outcome(last.mac / total, {key: _number(value) for key, value in beyond.items()}, notes)


def _number(value: float) -> float:
    """NaN isn't a constraint: quality that is no number is as far from holding as can be said."""
    return value if math.isfinite(value) else 1e3


def least_share(
    first: iterations.Iteration, now: iterations.Iteration, numbers: config.Settings, active: Sequence[str], left: int
) -> float:
    """The smallest share of a network's present MACs that `left` more iterations can leave.

    A layer's MACs go with its inputs times its outputs, each of which shrinks no faster than the group that may give
    most: the cap of an iteration, down to the group's floor. Under `align` a group's step divides `align`: it may give
    that much at once, and what rounding up leaves on top of the floor isn't counted on.
    """
    shares = [1.0]
    for name, count in now.channels.items():
        floor = rules.group_floor(first.channels[name], active, numbers)
        channels = count
        for _ in range(left):
            channels = max(min(channels, floor), channels - rules.group_cap(channels, numbers, numbers.align))
        shares.append(channels / count)
    return min(shares) ** 2
