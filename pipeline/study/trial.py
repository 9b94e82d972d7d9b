"""One trial of a study: prune with its settings, fine-tune once, measure. It knows nothing of Optuna."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.evaluation.metrics import Quality
from pipeline.networks import checkpoint, duplicate
from pipeline.progress import Silent
from pipeline.pruning import gate, iterations, prune, rules
from pipeline.training import recipes
from pipeline.training.loop import NonFiniteLossError
from pipeline.training.setup import Setup

Values = dict[str, float]
Report = Callable[[int, float, float], None]  # iteration, MACs now, and the fewest possible in the end, both in percent


@dataclass(frozen=True)
class Outcome:
    """The result of a finished trial."""

    mac_percent: float  # of the baseline's MACs: what is minimised
    # psnr_beyond_limit in dB, and ssim_beyond_limit if search.ssim asks for it: 0 or less holds the gate
    constraints: dict[str, float]
    notes: dict[str, Any] = field(default_factory=dict)  # user attributes: quality less each reference's, steps

    @property
    def feasible(self) -> bool:
        return all(value <= 0 for value in self.constraints.values())


class CannotWinError(Exception):
    """A trial has removed so little that no more iterations could make it the winner."""

    def __init__(self, mac_percent: float, notes: dict[str, Any] | None = None) -> None:
        super().__init__(f"it keeps {mac_percent:.1f}% of the MACs and can't get below the best feasible trial")
        self.mac_percent, self.notes = mac_percent, notes or {}


@dataclass(frozen=True)
class Problem:
    """What the trials of a study share: the chain's baseline and control, which are never trained again."""

    setup: Setup
    settings: config.Settings
    active: tuple[str, ...]
    recipe: config.Finetune
    baseline: Path
    target: gate.Target  # of the iterations
    final: Quality  # what the fine-tuned network is compared with
    rivals: dict[str, float]  # PSNR in dB of the baseline and of the control's end
    ssim: bool  # whether SSIM must hold as well

    @property
    def constraints(self) -> tuple[str, ...]:
        return ("psnr_beyond_limit", "ssim_beyond_limit") if self.ssim else ("psnr_beyond_limit",)


def measure(
    problem: Problem,
    values: Values,
    work: Path,
    report: Report,
    on_iteration: Callable[[iterations.Iteration, int], None] = lambda iteration, total: None,
) -> Outcome:
    """One trial: prune with these settings, fine-tune the last accepted network once, measure it.

    To give channels back after the fine-tune, as the chain does, would make every trial feasible and most of them the
    same; here the constraint tells the sampler where the parameters fail. Of a feasible trial, the chain makes the same
    network, and then looks for a smaller one. Unfinished work lies in `work`, and a trial with the same settings goes
    on from there.
    """
    setup = problem.setup
    settings = config.checked_settings(problem.settings, values)
    network, _ = checkpoint.load(problem.baseline, setup.network.factory)
    teacher = duplicate(network).eval()
    total, accepted, steps = setup.cost(network).mac, [], 0
    whole = setup.retrain.max_iterations * setup.iteration_steps + problem.recipe.steps

    def follow(iteration: iterations.Iteration) -> None:
        nonlocal steps
        steps = iteration.number * setup.iteration_steps
        if iteration.verdict == "accepted":
            accepted.append(iteration)
        on_iteration(iteration, total)
        mac_percent = 100 * accepted[-1].mac / total
        left = setup.retrain.max_iterations - iteration.number
        least = least_share(accepted[0], accepted[-1], settings, problem.active, left)
        tell(iteration.number, mac_percent, mac_percent * least)

    def tell(number: int, mac_percent: float, at_least: float) -> None:
        try:
            report(number, mac_percent, at_least)
        except CannotWinError as error:
            raise CannotWinError(error.mac_percent, {"steps": steps, "saved_share": 1 - steps / whole}) from None

    log = prune.prune(network, setup, settings, problem.active, problem.target, work, Silent(), follow)
    last = accepted[-1]
    mac_percent = 100 * last.mac / total
    tell(len(log) - 1, mac_percent, mac_percent)  # the fine-tune removes nothing

    pruned, _ = checkpoint.load(work / f"accepted-{last.number:03d}.pt", setup.network.factory)
    with contextlib.suppress(NonFiniteLossError):  # then it is judged as it was left
        recipes.train_final(pruned, setup, problem.recipe, work / "finetune.pt", Silent(), teacher)
    measured = setup.quality(pruned)
    psnr, ssim = measured.mean_psnr, measured.mean_ssim
    held = gate.changes(measured, problem.final, setup.gate.confidence)
    beyond = {
        "psnr_beyond_limit": -held[0] - setup.gate.max_psnr_drop,
        "ssim_beyond_limit": -held[1] - setup.gate.max_ssim_drop,
    }
    notes: dict[str, Any] = {f"psnr_change_{name}": psnr - other for name, other in problem.rivals.items()}
    notes |= {"psnr_change": psnr - problem.final.mean_psnr, "ssim_change": ssim - problem.final.mean_ssim}
    notes |= {"steps": steps + problem.recipe.steps, "saved_share": 0.0}
    return Outcome(mac_percent, {key: _number(beyond[key]) for key in problem.constraints}, notes)


def _number(value: float) -> float:
    """A constraint as Optuna takes it, which refuses NaN: 1000, far from holding, where the quality is no number."""
    return value if math.isfinite(value) else 1e3


def least_share(
    first: iterations.Iteration, now: iterations.Iteration, settings: config.Settings, active: Sequence[str], left: int
) -> float:
    """The smallest share of a network's present MACs that `left` more iterations can leave.

    A layer's MACs are proportional to its inputs times its outputs. An iteration removes at most a group's cap and
    leaves at least its floor; the group that can shrink most bounds both factors. With `align` a group may lose up to
    `align` channels at once, and what rounding up leaves above the floor isn't counted.
    """
    shares = [1.0]
    for name, count in now.channels.items():
        floor = rules.group_floor(first.channels[name], active, settings)
        channels = count
        for _ in range(left):
            channels = max(min(channels, floor), channels - rules.group_cap(channels, settings, settings.align))
        shares.append(channels / count)
    return min(shares) ** 2
